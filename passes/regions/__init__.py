"""The kinds of regions that one rounding each can compute in integers.

A new kind is a module here with a `RegionKind`, and its name in `KINDS`.
"""

from __future__ import annotations

from functools import cache

from tvmquant.passes.region_kind import Form, Open, RegionKind, Value
from tvmquant.passes.regions.arithmetic import (
    ClipRegion,
    ConstantRegion,
    ProductRegion,
    SumRegion,
)
from tvmquant.passes.regions.batch_norm import BatchNormRegion
from tvmquant.passes.regions.contraction import ContractionRegion
from tvmquant.passes.regions.extreme import ExtremeRegion
from tvmquant.passes.regions.mover import MoverRegion
from tvmquant.passes.regions.resize import ResizeRegion
from tvmquant.passes.regions.slope import SlopeRegion
from tvmquant.passes.regions.table import Chain, TableRegion
from tvmquant.passes.regions.window_mean import WindowMeanRegion

__all__ = ["KINDS", "Chain", "Form", "Open", "RegionKind", "Value", "kinds_of"]

# In the order in which they are asked: what an accumulator takes in before what would be a table,
# a function of one tensor before what combines two.
KINDS: tuple[RegionKind, ...] = (
    ContractionRegion(),
    WindowMeanRegion(),
    BatchNormRegion(),
    ClipRegion(),
    SlopeRegion(),
    ConstantRegion(),
    ResizeRegion(),
    MoverRegion(),
    TableRegion(),
    SumRegion(),
    ProductRegion(),
    ExtremeRegion(),
)


@cache
def kinds_of(operator: str) -> tuple[RegionKind, ...]:
    """Return the kinds that an operator may belong to, in the order in which they are asked."""
    return tuple(kind for kind in KINDS if operator in kind.operators)
