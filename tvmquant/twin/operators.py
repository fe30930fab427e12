"""One torch function per Relax operator of the float, the annotated and the integer graph.

An entry of `OPERATORS` reads the attributes of a call once and returns the function that computes
it from the call's tensor operands (constants included, the fields of a tuple one after another).
What torch cannot compute as asked is refused here, before anything runs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812  torch's own name for it
import tvm
from torch import Tensor
from tvm import relax

from tvmquant.errors import UnsupportedModelError
from tvmquant.ir.rewriter import span_name
from tvmquant.passes.recurrent import RECURRENT
from tvmquant.twin.attributes import integers, number
from tvmquant.twin.dynamic_operators import DYNAMIC_OPERATORS
from tvmquant.twin.fake_quantize import along_axis
from tvmquant.twin.index_operators import INDEX_OPERATORS
from tvmquant.twin.integer_operators import INTEGER_OPERATORS
from tvmquant.twin.recurrent import recurrent
from tvmquant.twin.structural_operators import STRUCTURAL_OPERATORS
from tvmquant.twin.windows import WINDOW_OPERATORS

Maker = Callable[[relax.Call], Callable[..., Any]]

# Of the batch's statistics in the running ones; that of torch.
MOMENTUM: Final = 0.1


def make_function(call: relax.Call) -> Operator:
    """Return the torch function of a call.

    Raises
    ------
    UnsupportedModelError
        If the operator, or an attribute of it, has no torch function; names the node. The function
        raises it where torch does not compute with the types that it is given.
    """
    maker = OPERATORS.get(str(call.op.name)) if isinstance(call.op, tvm.ir.Op) else None
    name = getattr(call.op, "name", str(call.op))
    if maker is None:
        raise UnsupportedModelError(
            f"node {span_name(call)!r}: the operator {name} has no torch function; calibration "
            f"supports {', '.join(sorted(OPERATORS))}"
        )
    label = f"node {span_name(call)!r}, operator {name}"
    try:
        return Operator(label, maker(call))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{label}: {error}") from None


@dataclass(frozen=True)
class Operator:
    """The torch function of a call, and what messages name the call."""

    label: str
    function: Callable[..., Any]

    def __call__(self, *operands: Any) -> Any:
        """Compute the result from the operands."""
        try:
            return self.function(*operands)
        except NotImplementedError as error:
            message = f"{self.label}: {error}; cast what it reads before"
            raise UnsupportedModelError(message) from None


def _plain(function: Callable[..., Any]) -> Maker:
    """Serve an operator whose call has no attributes."""
    return lambda _call: function


def _comparison(function: Callable[[Any, Any], Tensor]) -> Maker:
    return lambda _call: lambda a, b: function(_comparable(a), _comparable(b))


def _comparable(x: Tensor) -> Tensor:
    """Return a tensor in a type that torch compares: not those that it stores only."""
    return x.long() if x.dtype in (torch.uint16, torch.uint32) else x


def _clip(call: relax.Call) -> Callable[[Tensor], Tensor]:
    low, high = number(call.args[1]), number(call.args[2])
    return lambda x: torch.clamp(x, low, high)


def _leaky_relu(call: relax.Call) -> Callable[[Tensor], Tensor]:
    slope = float(call.attrs.alpha)
    return lambda x: F.leaky_relu(x, slope)


def _prelu(call: relax.Call) -> Callable[[Tensor, Tensor], Tensor]:
    axis, rank = int(call.attrs.axis), len(call.args[0].ty.shape.values)
    if axis % rank == 1:
        return F.prelu
    return lambda x, slope: torch.where(x >= 0, x, x * along_axis(slope, x, axis))


def _softmax(call: relax.Call) -> Callable[[Tensor], Tensor]:
    axis = int(call.attrs.axis)
    return lambda x: torch.softmax(x, axis)


def _log_softmax(call: relax.Call) -> Callable[[Tensor], Tensor]:
    axis = int(call.attrs.axis)
    return lambda x: torch.log_softmax(x, axis)


def _reduction(function: Callable[..., Tensor]) -> Maker:
    def make(call: relax.Call) -> Callable[[Tensor], Tensor]:
        axes = None if call.attrs.axis is None else integers(call.attrs.axis)
        keep = bool(call.attrs.keepdims)
        return lambda x: function(x, dim=axes or list(range(x.ndim)), keepdim=keep)

    return make


def _product(call: relax.Call) -> Callable[[Tensor], Tensor]:
    """Multiply along one axis after another: torch takes one at a time."""
    rank, keep = len(call.args[0].ty.shape.values), bool(call.attrs.keepdims)
    axes = range(rank) if call.attrs.axis is None else integers(call.attrs.axis)
    order = sorted((axis % rank for axis in axes), reverse=True)
    return lambda x: functools.reduce(lambda y, axis: torch.prod(y, axis, keepdim=keep), order, x)


@dataclass
class BatchNorm:
    """Batch normalization by the statistics of the model, or of the batch.

    Attributes
    ----------
    axis : int
        Of the channels.
    epsilon : float
    live : bool
        Whether the batch's statistics normalize, and move the model's towards themselves, in place,
        by `MOMENTUM` of the way.
    """

    axis: int
    epsilon: float
    live: bool = False

    def __call__(
        self, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized tensor, like x, and the statistics (C,) of the model."""
        y = F.batch_norm(
            x.movedim(self.axis, 1), mean, variance, gamma, beta, self.live, MOMENTUM, self.epsilon
        )
        return y.movedim(1, self.axis), mean, variance


def _batch_norm(call: relax.Call) -> BatchNorm:
    if bool(call.attrs.training):
        raise UnsupportedModelError(
            "normalizes by the statistics of the batch; export the model in inference mode"
        )
    return BatchNorm(int(call.attrs.axis), float(call.attrs.epsilon))


def _layer_norm(call: relax.Call) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    axes, epsilon = integers(call.attrs.axes), float(call.attrs.epsilon)

    def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        scaled = (x - mean) * torch.rsqrt(variance + epsilon)
        shape = [
            n if i in {a % x.ndim for a in axes} else 1 for i, n in enumerate(x.shape)
        ]  # fmt: skip
        return scaled * gamma.reshape(shape) + beta.reshape(shape)

    return layer_norm


def _group_norm(call: relax.Call) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    groups, epsilon = int(call.attrs.num_groups), float(call.attrs.epsilon)
    rank = len(call.args[0].ty.shape.values)
    if int(call.attrs.channel_axis) != 1 or integers(call.attrs.axes) != list(range(2, rank)):
        raise UnsupportedModelError("normalizes over some axes only; expected all but the batch")

    def group_norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """Normalize groups of any size; torch's own operator refuses those of one element."""
        rows = x.reshape(x.shape[0], groups, -1)
        variance, mean = torch.var_mean(rows, 2, correction=0, keepdim=True)
        normal = ((rows - mean) * torch.rsqrt(variance + epsilon)).reshape(x.shape)
        return normal * along_axis(gamma, x, 1) + along_axis(beta, x, 1)

    return group_norm


def _arg_extreme(function: Callable[..., Tensor]) -> Maker:
    def make(call: relax.Call) -> Callable[[Tensor], Tensor]:
        axis = None if call.attrs.axis is None else int(call.attrs.axis)
        keep = bool(call.attrs.keepdims)
        return lambda x: function(x, axis, keepdim=keep)

    return make


def _astype(call: relax.Call) -> Callable[[Tensor], Tensor]:
    dtype = getattr(torch, str(call.attrs.dtype))
    return lambda x: x.to(dtype)


OPERATORS: dict[str, Maker] = {
    **WINDOW_OPERATORS,
    **INTEGER_OPERATORS,
    **DYNAMIC_OPERATORS,
    **INDEX_OPERATORS,
    **STRUCTURAL_OPERATORS,
    "relax.add": _plain(operator.add),
    "relax.subtract": _plain(operator.sub),
    "relax.multiply": _plain(operator.mul),
    "relax.divide": _plain(operator.truediv),
    "relax.power": _plain(torch.pow),
    "relax.floor_mod": _plain(torch.remainder),
    "relax.maximum": _plain(torch.maximum),
    "relax.minimum": _plain(torch.minimum),
    "relax.matmul": _plain(torch.matmul),
    "relax.abs": _plain(torch.abs),
    "relax.negative": _plain(torch.neg),
    "relax.square": _plain(torch.square),
    "relax.sqrt": _plain(torch.sqrt),
    "relax.rsqrt": _plain(torch.rsqrt),
    "relax.isnan": _plain(torch.isnan),
    "relax.isinf": _plain(torch.isinf),
    "relax.exp": _plain(torch.exp),
    "relax.log": _plain(torch.log),
    "relax.erf": _plain(torch.erf),
    "relax.sin": _plain(torch.sin),
    "relax.cos": _plain(torch.cos),
    "relax.sign": _plain(torch.sign),
    "relax.floor": _plain(torch.floor),
    "relax.ceil": _plain(torch.ceil),
    "relax.round": _plain(torch.round),
    "relax.tanh": _plain(torch.tanh),
    "relax.sigmoid": _plain(torch.sigmoid),
    "relax.trunc": _plain(torch.trunc),
    "relax.acos": _plain(torch.acos),
    "relax.acosh": _plain(torch.acosh),
    "relax.asin": _plain(torch.asin),
    "relax.asinh": _plain(torch.asinh),
    "relax.atan": _plain(torch.atan),
    "relax.atanh": _plain(torch.atanh),
    "relax.cosh": _plain(torch.cosh),
    "relax.sinh": _plain(torch.sinh),
    "relax.tan": _plain(torch.tan),
    "relax.equal": _plain(torch.eq),
    "relax.greater": _comparison(torch.gt),
    "relax.greater_equal": _comparison(torch.ge),
    "relax.less": _comparison(torch.lt),
    "relax.less_equal": _comparison(torch.le),
    "relax.logical_and": _plain(torch.logical_and),
    "relax.logical_or": _plain(torch.logical_or),
    "relax.logical_xor": _plain(torch.logical_xor),
    "relax.logical_not": _plain(torch.logical_not),
    "relax.where": _plain(torch.where),
    "relax.clip": _clip,
    "relax.nn.relu": _plain(F.relu),
    "relax.nn.leakyrelu": _leaky_relu,
    "relax.nn.prelu": _prelu,
    "relax.nn.silu": _plain(F.silu),
    "relax.nn.gelu": _plain(F.gelu),
    "relax.nn.gelu_tanh": _plain(functools.partial(F.gelu, approximate="tanh")),
    "relax.nn.softmax": _softmax,
    "relax.nn.log_softmax": _log_softmax,
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.layer_norm": _layer_norm,
    "relax.nn.group_norm": _group_norm,
    "relax.mean": _reduction(torch.mean),
    "relax.sum": _reduction(torch.sum),
    "relax.prod": _product,
    "relax.max": _reduction(torch.amax),
    "relax.min": _reduction(torch.amin),
    "relax.argmax": _arg_extreme(torch.argmax),
    "relax.argmin": _arg_extreme(torch.argmin),
    RECURRENT: recurrent,
    "relax.astype": _astype,
}
