"""What a target can multiply: the registered instruction sets, and what is asked of them.

Chosen from the features of the TVM target alone, never from those of the machine that builds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import TensorIntrin

from tvmquant.errors import TargetError
from tvmquant.schedules.isa import stages, taps
from tvmquant.schedules.isa.dot_product import (
    DotProduct,
    Stage,
    generic,
    generic_popcount,
    multiply_add,
)


@dataclass(frozen=True)
class Level:
    """What processors with some features multiply with.

    Parameters
    ----------
    features : tuple of str
        All that are needed, as LLVM names them.
    dots : tuple of DotProduct
        The fastest first.
    """

    features: tuple[str, ...]
    dots: tuple[DotProduct, ...]


@dataclass(frozen=True)
class VectorUnit:
    """The vector registers of processors with some features.

    Parameters
    ----------
    features : tuple of str
        All that are needed, as LLVM names them.
    bits, registers : int
    """

    features: tuple[str, ...]
    bits: int
    registers: int


@dataclass(frozen=True)
class ByteLookup:
    """How processors with some features look up a vector of bytes in a table of 256.

    Parameters
    ----------
    features : tuple of str
        All that are needed, as LLVM names them.
    name : str
        Of the kernels that use it.
    lanes : int
        Bytes looked up at once.
    look_up : callable (table, index, lanes) -> expression
        ``table[index]`` for a uint8 buffer of 256 entries and a uint8 vector of indices, which is
        evaluated many times: a load or a variable.
    """

    features: tuple[str, ...]
    name: str
    lanes: int
    look_up: Callable[[Any, tirx.PrimExpr, int], tirx.PrimExpr]


# What every other processor is taken to have.
_OTHER = VectorUnit((), 128, 32)


@dataclass(frozen=True)
class InstructionSet:
    """The dot products of an architecture and what implements them.

    Parameters
    ----------
    name : str
    architectures : tuple of str
        Of the target's triple.
    levels : tuple of Level
        The first whose features a target has counts.
    stages : mapping of Stage to callable
        What returns the implementation of a stage for a dot product: a function with the signature
        of `stages.describe`'s result. `Stage.TAPS` also takes the parameters of `taps.describe`.
        Kernels do without the stages that are missing.
    units : tuple of VectorUnit
        As of ``levels``.
    multiply_add : callable (dot, total, a, b) -> expression, optional
        ``total`` plus a dot product of two vectors of operands, of the weight's type: what measures
        the peak of a processor.
    lookups : tuple of ByteLookup
        As of ``levels``. Kernels look bytes up one by one where there are none.
    binary : tuple of Level
        As ``levels``, of dot products of bits.
    """

    name: str
    architectures: tuple[str, ...]
    levels: tuple[Level, ...]
    stages: Mapping[Stage, Callable[..., tirx.PrimFunc]]
    units: tuple[VectorUnit, ...] = ()
    multiply_add: Callable[[DotProduct, Any, Any, Any], Any] | None = None
    lookups: tuple[ByteLookup, ...] = ()
    binary: tuple[Level, ...] = ()


_SETS: list[InstructionSet] = []


def register(instructions: InstructionSet) -> None:
    """Let kernels use an instruction set, before those that were registered earlier."""
    _SETS.insert(0, instructions)


def unregister(instructions: InstructionSet) -> None:
    """Take an instruction set back."""
    _SETS.remove(instructions)


def architecture(target: tvm.target.Target) -> str:
    """Return the architecture of a target's triple; of this machine's where it has none."""
    triple = target.attrs.get("mtriple") or tvm.target.codegen.llvm_get_system_triple()
    return str(triple).split("-")[0]


def has_feature(target: tvm.target.Target, feature: str) -> bool:
    """Whether LLVM reports ``feature`` (for example ``"avx512vnni"``) for the target."""
    return bool(tvm.target.codegen.target_has_features(feature, target))


def _first(target: tvm.target.Target, of: Callable[[InstructionSet], tuple[Any, ...]]) -> Any:
    """Return the first of some values whose features a target has; None without one."""
    name = architecture(target)
    for instructions in _SETS:
        if name in instructions.architectures:
            for found in of(instructions):
                if all(has_feature(target, feature) for feature in found.features):
                    return found
    return None


def _unit(target: tvm.target.Target) -> VectorUnit:
    found: VectorUnit | None = _first(target, lambda instructions: instructions.units)
    return found or _OTHER


def vector_bits(target: tvm.target.Target) -> int:
    """Return the widest integer vector register of the target, in bits."""
    return _unit(target).bits


def byte_lookup(target: tvm.target.Target) -> ByteLookup | None:
    """Return how a target looks up vectors of bytes; None where it cannot."""
    found: ByteLookup | None = _first(target, lambda instructions: instructions.lookups)
    return found


def _check_kind(target: tvm.target.Target) -> None:
    if target.kind.name != "llvm":
        raise TargetError(f"target kind {target.kind.name!r} has no integer kernels; use llvm")


def dot_products(
    target: tvm.target.Target,
    stage: Stage = Stage.DOT,
    *,
    exact: bool = False,
    plain: bool = False,
) -> tuple[DotProduct, ...]:
    """Return the dot products of a target, the fastest first; the generic one always ends the list.

    Parameters
    ----------
    target : Target
    stage : Stage
        That they have to offer.
    exact : bool
        Leave out those that saturate, which are exact only for weights that were proven to fit.
    plain : bool
        Leave out those that are not `DotProduct.plain`.

    Raises
    ------
    TargetError
        If the target is not compiled by LLVM.
    """
    _check_kind(target)
    level: Level | None = _first(target, lambda instructions: instructions.levels)
    found = [
        dot
        for dot in (level.dots if level else ())
        if offers(dot, stage) and not (exact and dot.saturates) and not (plain and not dot.plain)
    ]
    return (*found, generic(vector_bits(target) // 32))


def binary_dot_products(target: tvm.target.Target) -> tuple[DotProduct, ...]:
    """Return the dot products of bits of a target, the fastest first; generic code ends the list.

    Raises
    ------
    TargetError
        If the target is not compiled by LLVM.
    """
    _check_kind(target)
    level: Level | None = _first(target, lambda instructions: instructions.binary)
    return (*(level.dots if level else ()), generic_popcount(vector_bits(target) // 32))


def fma(target: tvm.target.Target) -> DotProduct:
    """Return the float32 multiply-add of a target."""
    unit = _unit(target)
    return multiply_add(unit.bits // 32, unit.registers)


def multiplies_in_pairs(target: tvm.target.Target) -> bool:
    """Whether the fastest dot product of a target is one that saturates."""
    return target.kind.name == "llvm" and dot_products(target)[0].saturates


def _set_of(dot: DotProduct) -> InstructionSet | None:
    for instructions in _SETS:
        if any(dot in level.dots for level in (*instructions.levels, *instructions.binary)):
            return instructions
    return None


def offers(dot: DotProduct, stage: Stage) -> bool:
    """Whether there is an intrinsic for a stage of a dot product."""
    instructions = _set_of(dot)
    return instructions is not None and stage in instructions.stages


def multiplier(dot: DotProduct) -> Callable[[DotProduct, Any, Any, Any], Any] | None:
    """Return `InstructionSet.multiply_add` of a dot product; None without one."""
    instructions = _set_of(dot)
    return instructions.multiply_add if instructions is not None else None


def _registered(
    name: str, dot: DotProduct, stage: Stage, description: Callable[[], tirx.PrimFunc], *more: Any
) -> str:
    if TensorIntrin.get(name, allow_missing=True) is None:
        instructions = _set_of(dot)
        if instructions is None or stage not in instructions.stages:
            raise TargetError(f"no registered instruction set has {stage.value!r} of {dot.name!r}")
        TensorIntrin.register(name, description(), instructions.stages[stage](dot, *more))
    return name


def intrinsic(dot: DotProduct, stage: Stage = Stage.DOT) -> str:
    """Register an intrinsic of a dot product on first use and return its name.

    Raises
    ------
    TargetError
        If no instruction set `offers` the stage.
    """
    name = f"tvmquant.{dot.name}.{stage.value}"
    return _registered(name, dot, stage, lambda: stages.describe(dot, stage))


def taps_intrinsic(dot: DotProduct, vectors: int, *, widened: bool, along: bool) -> str:
    """Register an intrinsic over taps on first use and return its name.

    Parameters and errors are those of `taps.describe` and `intrinsic`.
    """
    name = f"tvmquant.depthwise_{dot.name}_{vectors}"
    name += "_widened" * widened + "_along" * along
    more = (vectors, widened, along)
    return _registered(name, dot, Stage.TAPS, lambda: taps.describe(dot, *more), *more)
