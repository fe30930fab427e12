"""Mixed precision: measure, choose bit widths, and keep why."""

from tvmquant.mixed_precision.record import (
    RECORD_NAME,
    LayerRecord,
    MixedPrecisionRecord,
    PlanPoint,
)

__all__ = ["RECORD_NAME", "LayerRecord", "MixedPrecisionRecord", "PlanPoint"]
