"""Calibration and evaluation data: what they are read from and how they are preprocessed."""

from tvmquant.data.items import InputSpec
from tvmquant.data.preprocess import PRESETS, Preprocess
from tvmquant.data.sources import Dataset, Subset, arrays_of, filled_up, open_data

__all__ = [
    "PRESETS",
    "Dataset",
    "InputSpec",
    "Preprocess",
    "Subset",
    "arrays_of",
    "filled_up",
    "open_data",
]
