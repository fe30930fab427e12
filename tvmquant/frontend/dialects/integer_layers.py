"""ConvInteger and MatMulInteger, whose sums of integers are scaled by what follows them.

Before::

    q, s, z = DynamicQuantizeLinear(x)
    c = Cast(ConvInteger(q, w, z, w_zero), to=float)
    y = Mul(c, Mul(s, w_scale))

After::

    q, s, z = DynamicQuantizeLinear(x)
    y = Conv(DequantizeLinear(q, s, z), DequantizeLinear(w, w_scale, w_zero))

Sums that nothing scales like this are those of integers as real numbers, of scale 1, which float32
holds exactly up to 2^24.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from tvmquant.frontend.dialects.draft import Draft, Integers
from tvmquant.frontend.dialects.matrices import columns, flattened, rows
from tvmquant.frontend.dialects.registry import rewriting
from tvmquant.frontend.dialects.value_types import MOVERS
from tvmquant.frontend.dimensions import Array, UnsupportedNodeError
from tvmquant.frontend.node import Node

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
# Factors of one scale that are looked for; files have one or two.
_MOST_FACTORS = 8


@dataclass(frozen=True)
class _Scaled:
    """Where the sums of a layer have become real numbers.

    Parameters
    ----------
    output : str
        The real values.
    x_scale, w_scale : str
        Their scale is the product of these.
    nodes : tuple of Node
        Those that scale them.
    """

    output: str
    x_scale: str
    w_scale: str
    nodes: tuple[Node, ...]


@rewriting("ConvInteger", fewest=2, most=4)
def _write_conv(draft: Draft, node: Node) -> None:
    _write(draft, node, "Conv")


@rewriting("MatMulInteger", fewest=2, most=4)
def _write_matmul(draft: Draft, node: Node) -> None:
    _write(draft, node, "MatMul")


def _write(draft: Draft, node: Node, op_type: str) -> None:
    scaled = _find_scales(draft, node)
    if scaled is not None:
        try:
            inputs = _operands(draft, node, scaled.x_scale, scaled.w_scale)
        except UnsupportedNodeError:
            scaled = None  # they are factors of the result, but not scales of the weight
    if scaled is None:
        one = draft.constant(f"{node.name}/one", np.ones((), np.float32))
        inputs = _operands(draft, node, one, one)
    attributes = node.selected(*_CONV) if op_type == "Conv" else {}
    if scaled is not None:
        draft.emit(op_type, inputs, node.name, output=scaled.output, **attributes)
        draft.done.update(each.name for each in scaled.nodes)
        return
    real = draft.emit(op_type, inputs, node.name, **attributes)
    draft.emit(
        "Cast", [real], f"{node.name}/Cast", output=node.outputs[0], to=onnx.TensorProto.INT32
    )


def _operands(draft: Draft, node: Node, x_scale: str, w_scale: str) -> list[str]:
    """Return the real values of input and weight.

    Raises
    ------
    UnsupportedNodeError
        If scales or zero points differ otherwise than from channel to channel.
    """
    x, w, x_zero, w_zero = [*node.inputs, "", ""][:4]
    data, weight = Integers(x, x_scale, x_zero), Integers(w, w_scale, w_zero)
    names = (f"{node.name}/x", f"{node.name}/w")
    if node.op_type == "MatMulInteger":
        data, weight = rows(draft, data, names[0]), columns(draft, weight, names[1])
    else:
        weight = _channels(draft, weight)
    return [draft.dequantize(data, names[0]), draft.dequantize(weight, names[1])]


def _channels(draft: Draft, weight: Integers) -> Integers:
    """Return a weight (O, I, spatial) whose scales have the shape of factors of its result."""
    known, rank = draft.known.array(weight.scale), draft.rank_of(weight.name)
    if known is None or known.size == 1:
        return weight
    # counted from the back, as factors broadcast
    channels = known.ndim if rank is None else known.ndim - rank + 1
    if not 0 <= channels < known.ndim or known.shape[channels] != known.size:
        raise UnsupportedNodeError(
            f"scales {weight.scale!r} have shape {known.shape}, expected one for each channel"
        )
    return flattened(draft, replace(weight, axis=0))


def _find_scales(draft: Draft, node: Node) -> _Scaled | None:
    """Return what scales the sums of a layer, None if its result is used in another way."""
    own = _scale_of(draft, node.inputs[0])
    of_weight = _scale_of(draft, node.inputs[1])
    cast = draft.only_reader(node.outputs[0])
    if own is None or cast is None or cast.op_type != "Cast":
        return None
    if cast.integer("to", 0) != onnx.TensorProto.FLOAT:
        return None
    output, nodes, factors = cast.outputs[0], [cast], list[str]()
    while own not in factors or len(factors) < 2:
        product = draft.only_reader(output)
        if product is None or product.op_type != "Mul":
            break
        others = [name for name in product.inputs if name != output]
        found = _factors(draft, others[0]) if len(others) == 1 else []
        fits = [name in (own, of_weight) or draft.known.array(name) is not None for name in found]
        if not found or not all(fits):
            break
        factors += found
        nodes.append(product)
        output = product.outputs[0]
    w_scale = _remaining(draft, node, factors, own, of_weight)
    return None if w_scale is None else _Scaled(output, own, w_scale, tuple(nodes))


def _scale_of(draft: Draft, name: str) -> str | None:
    """Return the scale that integers got where they were quantized, None where that is unknown."""
    node = draft.known.producer(name)
    while node is not None and node.op_type in MOVERS:
        node = draft.known.producer(node.inputs[0])
    if node is not None and node.op_type == "DynamicQuantizeLinear":
        return str(node.proto.output[1])
    return node.inputs[1] if node is not None and node.op_type == "QuantizeLinear" else None


def _factors(draft: Draft, name: str) -> list[str]:
    """Return the values whose product a value is, empty if there are many."""
    factors, pending = list[str](), [name]
    while pending:
        current = pending.pop()
        node = draft.known.producer(current)
        if node is None or node.op_type != "Mul" or draft.known.array(current) is not None:
            factors.append(current)
        else:
            pending.extend(node.inputs)
        if len(factors) + len(pending) > _MOST_FACTORS:
            return []
    return factors


def _remaining(
    draft: Draft, node: Node, factors: list[str], own: str, of_weight: str | None
) -> str | None:
    """Return the scale of the weight: all factors but the scale of the input.

    None if the scale of the input is not one of them, or a scale computed at run time is one of
    several others.
    """
    rest = [name for name in factors if name != own]
    divisor = None
    if len(factors) - len(rest) != 1:
        # both scales may have been multiplied in the file already
        divisor = draft.known.array(own)
        if divisor is None or divisor.size != 1 or own in factors or not factors:
            return None
    if rest == [of_weight] and divisor is None:
        return of_weight
    arrays = [array for array in map(draft.known.array, rest) if array is not None]
    if len(arrays) < len(rest):
        return None
    product: Array = np.ones(())
    with np.errstate(all="ignore"):  # scales that are not valid are found afterwards
        for array in arrays:
            try:
                product = product * array.astype(np.float64)
            except ValueError:  # the file is damaged, which the import finds
                return None
        product = product if divisor is None else product / divisor.reshape(())
        return draft.constant(f"{node.name}/w/scale", product.astype(np.float32))
