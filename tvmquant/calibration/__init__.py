"""Calibration: observe a network's activations on data and choose the range to quantize."""

from tvmquant.calibration.calibrate import calibrate
from tvmquant.calibration.calibration import Calibration, EdgeRange, model_fingerprint
from tvmquant.calibration.observers import make_observer

__all__ = ["Calibration", "EdgeRange", "calibrate", "make_observer", "model_fingerprint"]
