"""The names of the ways to estimate sensitivity."""

from __future__ import annotations

from typing import Final

from tvmquant.errors import SensitivityError

METHODS: Final = ("hessian", "fisher", "output", "random")


def check_method(method: str) -> None:
    """Raise `SensitivityError` unless a method exists."""
    if method not in METHODS:
        raise SensitivityError(
            f"sensitivity method {method!r} is unknown; expected one of {', '.join(METHODS)}, or "
            "the sensitivity.json that `tvmquant train --recipe limpq` writes"
        )
