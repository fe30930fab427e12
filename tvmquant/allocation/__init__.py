"""Allocation: which layer gets which bit widths, under budgets, and why."""

from tvmquant.allocation.allocate import Allocation, allocate, pareto
from tvmquant.allocation.budget import Budget
from tvmquant.allocation.costs import QUANTITIES, layer_bops, layer_bytes
from tvmquant.allocation.plan import Plan, PlannedLayer

__all__ = [
    "QUANTITIES",
    "Allocation",
    "Budget",
    "Plan",
    "PlannedLayer",
    "allocate",
    "layer_bops",
    "layer_bytes",
    "pareto",
]
