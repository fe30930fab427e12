"""Sensitivity: what quantizing each layer costs the network."""

from tvmquant.sensitivity.estimate import METHODS, estimate_sensitivity
from tvmquant.sensitivity.record import LayerSensitivity, Sensitivity

__all__ = ["METHODS", "LayerSensitivity", "Sensitivity", "estimate_sensitivity"]
