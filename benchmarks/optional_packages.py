"""Packages that a comparison needs, and that need not be installed for anything else."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from tvmquant.errors import TVMQuantError


def require(package: str) -> ModuleType | Any:
    """Import an engine or a tool of others.

    Raises
    ------
    TVMQuantError
        When it is not installed, saying how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        command = _COMMANDS.get(package, "pip install tvmquant[peers]")
        raise TVMQuantError(
            f"{package} is not installed, and the comparison needs it; run `{command}` or leave it "
            "out"
        ) from error


# of what the extra `peers` does not bring
_COMMANDS = {"nncf": "pip install nncf"}
