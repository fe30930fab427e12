"""Mixed precision: measure, choose bit widths, and keep why."""

from tvmquant.mixed_precision.record import (
    RECORD_NAME,
    LayerRecord,
    MixedPrecisionRecord,
    PlanPoint,
)
from tvmquant.mixed_precision.wishes import Wishes

__all__ = ["RECORD_NAME", "LayerRecord", "MixedPrecisionRecord", "PlanPoint", "Wishes"]
