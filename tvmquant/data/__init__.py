"""Calibration and evaluation data: what they are read from and how they are preprocessed."""

from tvmquant.data.preprocess import PRESETS, Preprocess
from tvmquant.data.sources import Dataset, Subset, open_data

__all__ = ["PRESETS", "Dataset", "Preprocess", "Subset", "open_data"]
