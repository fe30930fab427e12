"""The families of kernels that compute convolutions and dense layers: one registry.

A family says which layers it computes, how it packs them, which tilings it has and its kernels.
Those of the list below are asked in turn: what one does not accept, the next may. A new family is a
module of this folder and an entry of the list.
"""

from __future__ import annotations

from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError, TargetError
from tvmquant.machine import Machine
from tvmquant.schedules.families.binary_conv2d import BinaryConv2DFamily, BinaryDenseFamily
from tvmquant.schedules.families.contraction import (
    CONV2D,
    CONV2D_TRANSPOSE,
    DENSE,
    Contraction,
    Layer,
    Lowered,
    Operand,
    Vectors,
    Weight,
)
from tvmquant.schedules.families.conv2d import Conv2DFamily
from tvmquant.schedules.families.conv2d_transpose import Conv2DTransposeFamily
from tvmquant.schedules.families.dense import DenseFamily
from tvmquant.schedules.families.depthwise_conv2d import DepthwiseConv2DFamily
from tvmquant.schedules.families.family import Family, Tilings
from tvmquant.schedules.families.tiled_transpose import TiledTransposeFamily

__all__ = [
    "CONV2D",
    "CONV2D_TRANSPOSE",
    "DENSE",
    "Contraction",
    "Family",
    "Layer",
    "Lowered",
    "Operand",
    "Tilings",
    "Vectors",
    "Weight",
    "family_of",
    "kernels",
    "operations",
    "register",
    "scales_groups",
    "sums_one_channel",
    "unregister",
]

_FAMILIES: list[Family] = [
    DepthwiseConv2DFamily(),
    BinaryConv2DFamily(),
    BinaryDenseFamily(),
    Conv2DFamily(),
    DenseFamily(),
    TiledTransposeFamily(),
    Conv2DTransposeFamily(),
]


def register(family: Family) -> None:
    """Let a family be asked before those that are known."""
    _FAMILIES.insert(0, family)


def unregister(family: Family) -> None:
    """Take a family back."""
    _FAMILIES.remove(family)


def family_of(
    contraction: Contraction, choice: BitChoice, machine: Machine | None, layer: str
) -> Family:
    """Return the first family that computes a contraction.

    Parameters
    ----------
    contraction, choice, machine
        As of `Family.accepts`.
    layer : str
        Name of the layer, for errors.

    Raises
    ------
    QuantizationError
        If none does.
    """
    found = _first(contraction, choice, machine)
    if found is not None:
        return found
    target = f" for the target {machine.options}" if machine else ""
    raise QuantizationError(
        f"layer {layer!r}: no kernel computes {contraction} as {choice}{target}; leave it in float"
    )


def scales_groups(contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
    """Whether the family that computes a contraction scales groups; False where none does.

    Parameters are those of `Family.scales_groups`.
    """
    found = _first(contraction, choice, machine)
    return found is not None and found.scales_groups(contraction, choice, machine)


def _first(contraction: Contraction, choice: BitChoice, machine: Machine | None) -> Family | None:
    asked = (family for family in _FAMILIES if family.accepts(contraction, choice, machine))
    return next(asked, None)


def operations() -> frozenset[str]:
    """Return what the families' kernels are called in reports."""
    return frozenset(family.operation for family in _FAMILIES)


def sums_one_channel(operation: str) -> bool:
    """Whether the kernels that are called so in reports are those of a `Family.one_channel`."""
    return any(family.one_channel for family in _FAMILIES if family.operation == operation)


def kernels(name: str) -> Family:
    """Return a family by the name that tilings are recorded under.

    Raises
    ------
    TargetError
        If there is none of that name.
    """
    for family in _FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(dict.fromkeys(family.name for family in _FAMILIES))
    raise TargetError(f"no kernels are called {name!r}; expected one of {known}")
