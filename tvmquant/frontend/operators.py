"""The operators that can be imported, and what their attributes may say.

What is refused here is refused before TVM is loaded, and all at once: a node is judged by its
operator, its attributes and the shapes of its constants, not by the shapes of its data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.resampling import COORDINATES
from tvmquant.frontend.windows import check_attributes

# Ranks of the values that are known to be constant, by name.
Ranks: TypeAlias = Mapping[str, int]
# Returns the reason why a node is unsupported, or None.
Check: TypeAlias = Callable[[Node, Ranks], "str | None"]

_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
CastLike Ceil Celu Clip Concat ConstantOfShape Conv ConvTranspose Cos Cosh CumProd CumSum
DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool
GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Hardmax Identity
InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mul Neg
Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
Relu Reshape Resize Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh
Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh
ThresholdedRelu Tile Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_NAMES.split())

PAD_MODES = ("constant", "reflect", "edge", "wrap")
ASPECT_RATIO_POLICIES = ("stretch", "not_larger", "not_smaller")
RESIZE_MODES = ("nearest", "linear", "cubic")
GATE_ACTIVATIONS = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}


def coordinates_of(node: Node) -> str:
    """Return the mapping of coordinates of a resize; before opset 11 there was one only."""
    default = "half_pixel" if node.opset >= 11 else "asymmetric"
    return node.text("coordinate_transformation_mode", default)


def _used_outputs(node: Node) -> int:
    return sum(1 for name in node.outputs if name)


def _check_window(node: Node, ranks: Ranks) -> str | None:
    """Check the window of a convolution or pooling: its rank, strides, dilations and pads."""
    rank = len(node.integers("kernel_shape"))
    if not rank and node.op_type.startswith("Conv"):
        rank = ranks.get(node.inputs[1], 2) - 2
    if rank < 1:
        return None  # as its data say
    try:
        check_attributes(node, rank)
    except UnsupportedNodeError as error:
        return str(error)
    return None


def _check_max_pool(node: Node, ranks: Ranks) -> str | None:
    if _used_outputs(node) > 1:
        return "its output of indices is used"
    return _check_window(node, ranks)


def _check_lp_pool(node: Node, ranks: Ranks) -> str | None:
    if node.integer("p", 2) < 1:
        return f"p={node.integer('p', 2)}, expected a number > 0"
    return _check_window(node, ranks)


def _check_batch_norm(node: Node, _: Ranks) -> str | None:
    # before opset 14 naming further outputs, read or not, meant training
    named = node.outputs if node.opset >= 14 else node.proto.output
    if node.integer("training_mode", 0) or sum(1 for name in named if name) > 1:
        return "it is in training mode; export the model in inference mode (model.eval())"
    return None


def _check_lp_norm(node: Node, _: Ranks) -> str | None:
    order = node.integer("p", 2)
    return None if order in (1, 2) else f"p={order}, expected 1 or 2"


def _check_lrn(node: Node, _: Ranks) -> str | None:
    size = node.integer("size", 1)
    return None if size >= 1 else f"size={size}, expected at least 1"


def _check_pad(node: Node, _: Ranks) -> str | None:
    mode = node.text("mode", "constant")
    if mode not in PAD_MODES:
        return f"it pads with mode={mode!r}, expected one of {', '.join(PAD_MODES)}"
    return None


def _check_resize(node: Node, _: Ranks) -> str | None:
    mode, coordinates = node.text("mode", "nearest"), coordinates_of(node)
    if mode not in RESIZE_MODES:
        return f"mode={mode!r} is not supported, expected one of {', '.join(RESIZE_MODES)}"
    if coordinates not in COORDINATES:
        return (
            f"coordinate_transformation_mode={coordinates!r} is not supported, expected one of "
            f"{', '.join(COORDINATES)}"
        )
    policy = node.text("keep_aspect_ratio_policy", "stretch")
    if policy not in ASPECT_RATIO_POLICIES:
        listed = ", ".join(ASPECT_RATIO_POLICIES)
        return f"keep_aspect_ratio_policy={policy!r} is not supported, expected one of {listed}"
    return None


def _check_recurrent(node: Node, _: Ranks) -> str | None:
    kind = node.op_type
    directions = 2 if node.text("direction", "forward") == "bidirectional" else 1
    usual = GATE_ACTIVATIONS[kind] * directions
    given = node.attributes.get("activations", [])
    names = [str(n if isinstance(n, str) else n.decode(errors="replace")) for n in given] or usual
    allowed = [usual, ["Relu"] * directions] if kind == "RNN" else [usual]
    if [name.title() for name in names] not in allowed:
        return f"its activations are {', '.join(names)}, expected {', '.join(usual)}"
    if node.number("clip", 0.0):
        return f"it clips its gates at {node.number('clip', 0.0):g}, which is not supported"
    if node.integer("input_forget", 0):
        return "it couples its input and forget gates, which is not supported"
    if len(node.inputs) > 7 and node.inputs[7]:
        return "it has peepholes, which are not supported; export it without"
    return None


CHECKS: dict[str, Check] = {
    "AveragePool": _check_window,
    "BatchNormalization": _check_batch_norm,
    "Conv": _check_window,
    "ConvTranspose": _check_window,
    "GRU": _check_recurrent,
    "LRN": _check_lrn,
    "LSTM": _check_recurrent,
    "LpNormalization": _check_lp_norm,
    "LpPool": _check_lp_pool,
    "MaxPool": _check_max_pool,
    "Pad": _check_pad,
    "RNN": _check_recurrent,
    "Resize": _check_resize,
    "Upsample": _check_resize,
}
