"""Build one scheduled PrimFunc and run it on numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import tirx

from tvmquant.schedules.epilogue import Epilogue

NATIVE = "native"
# what is executed on an x86 machine with AVX2
EXECUTED = ("x86-64", "haswell")
# what is compiled only, its instructions belonging to other processors
COMPILED = (
    {"kind": "llvm", "mcpu": "skylake-avx512"},
    {"kind": "llvm", "mcpu": "znver4"},
    {"kind": "llvm", "mcpu": "alderlake"},
    {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"},
)


def make_target(name: str | dict[str, Any]) -> tvm.target.Target:
    """Return the LLVM target of an mcpu name (``"native"``: of this machine) or of a dictionary."""
    if isinstance(name, dict):
        return tvm.target.Target(name)
    if name == NATIVE:
        name = str(tvm.target.codegen.llvm_get_system_cpu())
    return tvm.target.Target({"kind": "llvm", "mcpu": name})


def build(func: tirx.PrimFunc, target: tvm.target.Target) -> Any:
    """Compile a scheduled PrimFunc; the module's function is called ``main``."""
    module = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    compiled = tvm.compile(module, target=target)
    return compiled.mod if hasattr(compiled, "mod") else compiled


def output_of(func: tirx.PrimFunc) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of the last argument."""
    buffer = func.params[-1].ty
    return tuple(int(v) for v in buffer.shape), str(buffer.dtype)


def device_arguments(func: tirx.PrimFunc, inputs: Sequence[Any]) -> list[tvm.runtime.Tensor]:
    """Return the arguments of a call: copies of the inputs, then an output full of ones.

    They are checked here, because `build` leaves TVM's own checks out.
    """
    shape, dtype = output_of(func)
    arrays = [np.ascontiguousarray(a) for a in (*inputs, np.full(shape, 1, dtype))]
    for param, array in zip(func.params, arrays, strict=True):
        assert (str(param.ty.dtype), tuple(param.ty.shape)) == (str(array.dtype), array.shape)
    return [tvm.runtime.tensor(a, tvm.cpu()) for a in arrays]


def run(func: tirx.PrimFunc, target: tvm.target.Target, inputs: Sequence[Any]) -> Any:
    """Build, call once and return the output as a numpy array."""
    arguments = device_arguments(func, inputs)
    build(func, target)["main"](*arguments)
    return arguments[-1].numpy()


def microseconds(
    func: tirx.PrimFunc, target: tvm.target.Target, inputs: Sequence[Any], repeat: int = 300
) -> float:
    """Return the least time of a call in microseconds; of many short runs some are undisturbed."""
    evaluator = build(func, target).time_evaluator(
        "main", tvm.cpu(), number=1, repeat=repeat, min_repeat_ms=0
    )
    arguments = device_arguments(func, inputs)
    evaluator(*arguments)
    return float(np.min(evaluator(*arguments).results)) * 1e6


def epilogue_inputs(
    rng: np.random.Generator, epilogue: Epilogue, channels: int, magnitude: int
) -> dict[str, Any]:
    """Return random multiplier, offset and shift that spread accumulators over the output range.

    Parameters
    ----------
    magnitude : int
        Typical |accumulator|, > 0.
    """
    bits = 5 if epilogue.compute_dtype == "int32" else 20
    multiplier = rng.integers(1 << (bits - 1), 1 << bits, channels)
    # (acc * M) >> s spans about 8 bits
    shift = np.full(channels, max(1, bits + int(magnitude).bit_length() - 7))
    offset = rng.integers(-magnitude, magnitude + 1, channels) * multiplier
    dtype = epilogue.compute_dtype
    return {
        "multiplier": multiplier.astype(dtype),
        "offset": offset.astype(dtype),
        "shift": shift.astype(dtype),
    }


def apply_epilogue(
    epilogue: Epilogue,
    acc: Any,
    multiplier: Any,
    offset: Any,
    shift: Any,
    residual: tuple[Any, Any] | None = None,
    table: Any = None,
) -> Any:
    """Evaluate an epilogue in numpy, in 64 bits."""
    total = acc.astype(np.int64) * multiplier.astype(np.int64) + offset.astype(np.int64)
    if residual is not None:
        total = total + residual[0].astype(np.int64) * residual[1].astype(np.int64)
    shift = shift.astype(np.int64)
    if epilogue.ties_to_even:
        total = total + (np.int64(1) << (shift - 1)) - 1 + ((total >> shift) & 1)
    steps = (total >> shift) + epilogue.zero_point
    clipped = np.clip(steps, epilogue.qmin, epilogue.qmax)
    return table[clipped] if table is not None else clipped.astype(epilogue.out_dtype)
