"""Describe a compiled graph for the manifest: its tensors, its kernel calls, what it is for."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tvm
from tvm import relax

from tvmquant.arithmetic import Array
from tvmquant.bit_choice import BitChoice
from tvmquant.deploy.manifest import LayerInfo, TargetFacts, TensorInfo, Versions
from tvmquant.entries import entry_name
from tvmquant.formats import LEAST_BITS, MOST_BITS, Binary, Format, channel_widths
from tvmquant.graph import Graph, layer_name
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, used_vars
from tvmquant.machine import Machine
from tvmquant.passes.convert_layout import TO_NHWC
from tvmquant.passes.lowering.contractions import contraction_of
from tvmquant.passes.store_weights import LEAST_SHARE
from tvmquant.schedules import families
from tvmquant.schedules.kernel_facts import moves_channels, operation_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Scale and zero point of inputs that are integers themselves.
AS_IS = np.ones(1), 0


def describe_target(machine: Machine) -> TargetFacts:
    """Return what a manifest says of the target."""
    return {
        "config": str(machine.target),
        "triple": machine.triple,
        "features": machine.required_features,
    }


def present_versions() -> Versions:
    """Return what a manifest says of the versions at work."""
    return {
        "tvmquant": importlib.metadata.version("tvmquant"),
        "tvm": importlib.metadata.version("apache-tvm"),
    }


def describe_tensors(
    graph: Graph, module: tvm.IRModule, lowered: tvm.IRModule, has_raw: bool, width: int = 0
) -> tuple[list[TensorInfo], list[TensorInfo]]:
    """Describe inputs and outputs: float shapes from ``lowered``, scales from the L2 ``module``.

    At a width other than the widest, of a library that has several.
    """
    main = lowered[entry_name("main", width)]
    result = main.ret_ty
    types = list(result.fields) if isinstance(result, tvm.ir.TupleType) else [result]
    inputs = [
        _tensor(name, param.ty) for name, param in zip(graph.input_names, main.params, strict=True)
    ]
    outputs = [_tensor(name, ty) for name, ty in zip(graph.output_names, types, strict=True)]
    if not has_raw:
        return inputs, outputs
    raw = lowered[entry_name("raw", width)]
    raw_types = (
        list(raw.ret_ty.fields) if isinstance(raw.ret_ty, tvm.ir.TupleType) else [raw.ret_ty]
    )
    scales_in, scales_out = _border_scales(module)
    # main quantizes every float input, calls raw, dequantizes every output, in order
    calls = [v for _, v in bindings_of(main) if isinstance(v, relax.Call)]
    kernels = [lowered[v.args[0]] for v in calls if not isinstance(v.op, tvm.ir.GlobalVar)]
    borders = iter(map(moves_channels, kernels))
    inputs = [
        _with_raw(info, param.ty, i in scales_in and next(borders), *scales_in.get(i, AS_IS))
        for i, (info, param) in enumerate(zip(inputs, raw.params, strict=True))
    ]
    ranges = _input_ranges(module)
    inputs = [
        replace(info, raw_range=ranges.get(i) or _type_range(info.raw_dtype))
        for i, info in enumerate(inputs)
    ]
    outputs = [
        _with_raw(info, ty, next(borders), *scales_out[i])
        for i, (info, ty) in enumerate(zip(outputs, raw_types, strict=True))
    ]
    return inputs, outputs


def _tensor(name: str, ty: relax.TensorType) -> TensorInfo:
    shape = [int(v) for v in ty.shape.values]
    return TensorInfo(name, shape, str(ty.dtype.dtype), "NCHW" if len(shape) == 4 else "")


def _with_raw(
    info: TensorInfo, ty: relax.TensorType, moved: bool, scales: Array, zero: int
) -> TensorInfo:
    """Add the raw form, which is channels last where the kernel at the border moves them."""
    shape = [int(v) for v in ty.shape.values]
    layout = "NHWC" if moved else info.layout
    scale = float(scales.max())
    factors, factors_shape = [], []
    if scales.size > 1:
        laid_out = scales.transpose(TO_NHWC) if layout != info.layout else scales
        factors_shape = list(laid_out.shape)
        factors = [float(f) for f in (laid_out / scale).reshape(-1)]
    return TensorInfo(
        info.name, info.shape, info.dtype, info.layout, scale, zero, shape,
        str(ty.dtype.dtype), layout, factors, factors_shape,
    )  # fmt: skip


def _input_ranges(module: tvm.IRModule) -> dict[int, list[int]]:
    """Return the least and greatest integer of each float input of an L2 module, by position."""
    position = {param: i for i, param in enumerate(module["main"].params)}
    return {
        position[value.args[0]]: [int(attrs["qmin"]), int(attrs["qmax"])]
        for _, value in bindings_of(module["main"])
        if qop.is_call(value, qop.QUANTIZE) and value.args[0] in position
        for attrs in [qop.attributes(value)]
    }


def _type_range(dtype: str) -> list[int]:
    if dtype == "bool":
        return [0, 1]
    limits = np.iinfo(dtype)
    return [int(limits.min), int(limits.max)]


def _border_scales(
    module: tvm.IRModule,
) -> tuple[dict[int, tuple[Array, int]], dict[int, tuple[Array, int]]]:
    """Return scales and zero point of each float input and each output of an L2 module.

    By position.
    """
    main = module["main"]
    values = dict(bindings_of(main))
    position = {param: i for i, param in enumerate(main.params)}
    inputs: dict[int, tuple[Array, int]] = {}
    for value in values.values():
        if qop.is_call(value, qop.QUANTIZE) and value.args[0] in position:
            attrs = qop.attributes(value)
            inputs[position[value.args[0]]] = np.asarray([attrs["scale"]]), attrs["zero_point"]
    outputs: dict[int, tuple[Array, int]] = {}
    for i, output in enumerate(used_vars(main.body.body)):
        call = _resolve(output, values)
        if qop.is_call(call, qop.DEQUANTIZE):
            scales = qop.constant_array(call.args[1]).astype(np.float64)
            outputs[i] = scales, qop.attributes(call)["zero_point"]
    return inputs, outputs


def _resolve(var: relax.Var, values: Mapping[relax.Var, Any]) -> Any:
    value = values.get(var)
    while isinstance(value, relax.Var):
        value = values.get(value)
    return value


def describe_layers(
    module: tvm.IRModule, lowered: tvm.IRModule, batch: int = 1, width: int = 0
) -> list[LayerInfo]:
    """List the kernel calls of a lowered module in execution order.

    Parameters
    ----------
    module : IRModule
        The L2 (or L0) module it was lowered from, for bit widths and work.
    lowered : IRModule
        The L3 module, with or without the entry of `ExposeIntegers`.
    batch : int
        Batch size it was lowered for.
    width : int
        At which, where it is another than the widest, of a library that has several.
    """
    work = _work_by_layer(module, batch)
    layers = []
    for var, value in _kernel_calls(lowered, entry_name("main", width)):
        symbol = str(value.args[0].name_hint)
        shape = [int(v) for v in var.ty.shape.values]
        name = layer_name(value) or symbol
        operation = operation_of(lowered[value.args[0]])
        facts = work.get(name, {}) if operation in families.operations() else {}
        layers.append(
            LayerInfo(name, operation or symbol, symbol, shape, str(var.ty.dtype.dtype), **facts)
        )
    return layers


def _kernel_calls(lowered: tvm.IRModule, function: str) -> Iterator[tuple[relax.Var, relax.Call]]:
    """Yield the kernel calls of a function and of those it calls, in execution order."""
    for var, value in bindings_of(lowered[function]):
        if not isinstance(value, relax.Call):
            continue
        if isinstance(value.op, tvm.ir.GlobalVar):
            yield from _kernel_calls(lowered, str(value.op.name_hint))
        elif isinstance(value.args[0], tvm.ir.GlobalVar) and not _is_view(lowered, value):
            yield var, value


def _is_view(lowered: tvm.IRModule, value: relax.Call) -> bool:
    """Whether a call only gives its input another shape, which costs nothing at run time."""
    return bool(relax.analysis.has_reshape_pattern(lowered[value.args[0]]))


def _work_by_layer(module: tvm.IRModule, batch: int) -> dict[str, dict[str, Any]]:
    """Return multiply-accumulates and bit widths of every contraction, by layer name."""
    work: dict[str, dict[str, Any]] = {}
    for _, value in bindings_of(module["main"]):
        if not qop.is_call(value, *qop.CONTRACTIONS):
            continue
        attrs = qop.attributes(value)
        choice = BitChoice.parse(attrs["choice"])
        work[attrs["id"]] = {
            "macs": contraction_of(value, batch).macs,
            "choice": attrs["choice"],
            "weight_format": choice.weight.name,
            "activation_format": choice.activation.name,
            "weight_pairs": "bounded" if attrs["bounded"] else "free",
            "compute_dtype": attrs.get("compute_dtype", ""),
            "dynamic": bool(attrs.get("dynamic", 0)),
            "channel_widths": _channel_widths(qop.constant_array(value.args[1]), choice.weight),
        }
    return work


def _channel_widths(weight: Array, held: Format) -> list[int]:
    """Return what `LayerInfo.channel_widths` says of a weight (O, ...)."""
    widths = channel_widths(weight)
    if isinstance(held, Binary) or widths.mean() > (1.0 - LEAST_SHARE) * held.bits:
        return []
    return [int(count) for count in np.bincount(widths, minlength=MOST_BITS + 1)[LEAST_BITS:]]
