"""Sensitivity: what quantizing each layer costs the network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from tvmquant.sensitivity.methods import METHODS, check_method

if TYPE_CHECKING:
    from tvmquant.sensitivity.estimate import estimate_sensitivity as estimate_sensitivity
    from tvmquant.sensitivity.record import LayerSensitivity as LayerSensitivity
    from tvmquant.sensitivity.record import Sensitivity as Sensitivity

# Imported on first use: they need PyTorch, and the command line checks a method's name first.
_LAZY: Final = {
    "LayerSensitivity": "tvmquant.sensitivity.record",
    "Sensitivity": "tvmquant.sensitivity.record",
    "estimate_sensitivity": "tvmquant.sensitivity.estimate",
}

__all__ = ["METHODS", "LayerSensitivity", "Sensitivity", "check_method", "estimate_sensitivity"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tvmquant.sensitivity' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
