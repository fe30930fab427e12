from typing import NamedTuple

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.passes.graphs import (
    calls,
    check,
    const,
    distance,
    graph,
    normal,
    op_names,
    quantize,
    run_twin,
)
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.formats import GROUP_LEVELS, UINT8
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import imported_sign
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, span_name
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.apply_calibration import ApplyCalibration
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.simulator import simulate

op = relax.op
SHAPE = (2, 8, 9, 9)
BATCH = tirx.Var("n", "int64")


class Emitter:
    """Emits layers with weights of their own, reproducibly."""

    def __init__(self, emit):
        self.emit = emit
        self.seed = 0

    def __call__(self, expr, name=""):
        return self.emit(expr, name)

    def numbers(self, *shape, scale=1.0):
        self.seed += 1
        return normal(*shape, scale=scale, seed=self.seed)

    def conv(self, x, outputs=8, kernel=3, name="conv", groups=1, padding=None, **options):
        inputs = int(x.ty.shape.values[1]) // groups
        weight = self.numbers(outputs, inputs, kernel, kernel, scale=(inputs * kernel**2) ** -0.5)
        padding = kernel // 2 if padding is None else padding
        y = op.nn.conv2d(x, const(weight), padding=padding, groups=groups, **options)
        bias = const(self.numbers(1, outputs, 1, 1, scale=0.3))
        return self(op.add(self(y, name), bias), name)

    def dense(self, x, outputs, name="fc"):
        inputs = int(x.ty.shape.values[-1])
        y = op.matmul(x, const(self.numbers(inputs, outputs, scale=inputs**-0.5)))
        return self(op.add(self(y, name), const(self.numbers(outputs))), name)

    def relu(self, x):
        return self(op.nn.relu(x))

    def norm(self, x, name="norm"):
        channels = int(x.ty.shape.values[1])
        gamma, beta, mean = self.numbers(3, channels)
        variance = self.numbers(channels) ** 2 + np.float32(0.5)
        parameters = map(const, (gamma, beta, mean, variance))
        y = self(op.nn.batch_norm(x, *parameters, axis=1, training=False), name)
        return self(relax.TupleGetItem(y, 0))

    def mean(self, x):
        return self(op.mean(x, [2, 3], keepdims=True))


class Case(NamedTuple):
    """A network with the operators of its integer form between the borders."""

    body: object
    integer: str
    shapes: tuple = (SHAPE,)


def hard_swish(e, x):
    y = e.conv(x, name="a")
    gate = e(op.clip(e(op.add(y, const(3.0))), 0, 6))
    return e.conv(e(op.multiply(y, e(op.divide(gate, const(6.0))))), name="b")


def squeeze_excite(e, x):
    y = e.relu(e.conv(x, name="a"))
    gate = e.conv(e.relu(e.conv(e.mean(y), 4, 1, name="reduce")), 8, 1, name="expand")
    gate = e(op.clip(e(op.add(e(op.multiply(const(1 / 6), gate)), const(0.5))), 0, 1))
    return e.conv(e(op.multiply(gate, y)), name="b")


def downsample(e, x):
    x = e.relu(e.conv(x, name="stem"))
    left = e.relu(e.norm(e.conv(x, 16, name="a", strides=2)))
    left = e.norm(e.conv(left, 16, name="b"))
    return e.relu(e(op.add(left, e.norm(e.conv(x, 16, 1, name="down", strides=2)))))


def dense_block(e, x):
    both = e(op.concat([e.conv(x, name="a"), e.relu(e.conv(x, 4, name="b"))], 1))
    third = e.conv(e.relu(e.norm(both)), 4, 1, name="c")
    return e.conv(e.relu(e.norm(e(op.concat([both, third], 1)))), 6, name="d")


def shared_concat(e, x):
    a, b = e.relu(e.conv(x, name="a")), e.conv(x, name="b")
    pooled = e(op.nn.max_pool2d(a, (3, 3), (1, 1), (1, 1, 1, 1)))
    first, second = e(op.concat([a, b], 1)), e(op.concat([pooled, b, x], 1))
    return e.conv(first, 4, name="c"), e.conv(second, 4, name="d")


def slices(e, x):
    y = e.conv(x)
    part = e(op.strided_slice(y, [1, 2], [1, 0], [5, 8], [2, 1]))
    left, right = (e(op.strided_slice(y, [1], [i], [i + 4])) for i in (0, 4))
    return e.conv(part, 4, name="a"), e(op.add(left, right)), e.conv(right, 3, name="b")


def sloped(e, x):
    """Slopes of a layer, of a sum and of a tensor that was pooled."""
    slopes = const(np.linspace(-1.5, 2, 8, dtype=np.float32))
    first = e(op.nn.prelu(e.conv(x, name="a"), slopes, 1))
    total = e(op.nn.prelu(e(op.add(e.conv(first, name="b"), first)), slopes, 1))
    pooled = e(op.nn.max_pool2d(total, (2, 2)))
    return e.conv(e(op.nn.prelu(pooled, slopes, 1)), 4, name="c")


def shifted_slopes(e, x):
    """RPReLUs, of a layer and of a sum, and what may follow in the same rounding."""
    slopes = const(np.linspace(-0.3, 2, 8, dtype=np.float32))
    shift = const(normal(8, 1, 1))
    first = e(op.add(e(op.nn.prelu(e.conv(x, name="a"), slopes, 1)), shift))
    total = e(op.nn.prelu(e(op.add(e.conv(first, name="b"), first)), slopes, 1))
    half = e(op.multiply(e(op.subtract(total, shift)), const(np.float32(0.5))))
    return e.conv(e.relu(half), 4, name="c")


def signs_of_slopes(e, x):
    """What is below 0 may be above a threshold again."""
    slopes = const(np.linspace(-1.5, 2, 8, dtype=np.float32))
    y = e(op.add(e(op.nn.prelu(e.conv(x, name="a"), slopes, 1)), const(normal(8, 1, 1))))
    return e.conv(e(imported_sign(y, 1.0, name="signs")), 4, name="b")


def leaky(e, x):
    """One slope of a layer, and of a sum."""
    first = e(op.nn.leakyrelu(e.conv(x, name="a"), 0.1))
    total = e(op.nn.leakyrelu(e(op.add(e.conv(first, name="b"), first)), 0.2))
    return e.conv(total, 4, name="c")


def broadcast(e, x):
    y = e.conv(x, name="a")
    pooled = e.mean(y)
    row = e(op.strided_slice(e.relu(e.conv(y, 8, 1, name="b")), [2], [3], [4]))
    return e.conv(e.relu(e(op.add(pooled, e(op.subtract(row, y))))), 4, name="c")


def gated(e, x):
    y = e.relu(e.conv(x))
    return e(op.add(e(op.multiply(e.mean(y), y)), y))


def channels_last(e, x):
    y = e(op.permute_dims(x, [0, 2, 3, 1]))
    y = e(op.multiply(e.dense(y, 6), const(e.numbers(6))))
    return e.conv(e(op.permute_dims(y, [0, 3, 1, 2])), 4)


def transposed(e, x):
    weight = const(e.numbers(8, 3, 3, 3, scale=0.2))
    y = op.nn.conv2d_transpose(x, weight, strides=2, padding=1, output_padding=1, groups=2)
    return e.relu(e.norm(e(op.add(e(y, "up"), const(e.numbers(1, 6, 1, 1))))))


def transposed_with_gaps(e, x):
    weight = const(e.numbers(8, 6, 2, 2, scale=0.2))
    return e.norm(e(op.nn.conv2d_transpose(e.relu(e.conv(x)), weight, strides=3), "up"))


def classifier(e, x):
    y = e(op.nn.max_pool2d(e.relu(e.norm(e.conv(x))), (9, 9)))
    y = e(op.reshape(e(op.concat([e.mean(y), y], 1)), [x.ty.shape.values[0], -1]))
    return e.dense(y, 5)


def shuffle(e, x):
    y = e(op.reshape(e.relu(e.conv(x, name="a")), [2, 2, 4, 9, 9]))
    y = e(op.reshape(e(op.permute_dims(y, [0, 2, 1, 3, 4])), [2, 8, 9, 9]))
    return e.conv(y, 4, name="b")


def chosen(e, x):
    a, b = e.conv(x, name="a"), e.conv(x, name="b")
    return e.conv(e(op.where(e(op.greater(a, const(0.1))), a, b)), 4, name="c")


def expanded(e, x):
    pooled = e.mean(e.conv(x, name="a"))
    return e.conv(e(op.broadcast_to(pooled, (2, 8, 5, 5))), name="b")


def one_function(function):
    def body(e, x):
        y = e.conv(x, name="a")
        return e.conv(function(e, y), 4, name="b")

    return body


def average(pool, strides, padding=(0, 0, 0, 0), **options):
    return lambda e, x: e(op.nn.avg_pool2d(e.conv(x), pool, strides, padding, **options))


def read_twice(e, x):
    y = e.conv(x, name="a")
    return e(op.add(e.relu(y), e(op.add(e.conv(y, name="b"), y))))


def resized(method):
    def network(e, x):
        y = op.image.resize2d(
            e.relu(e.conv(x, name="a")),
            (18, 18),
            method=method,
            coordinate_transformation_mode="asymmetric",
            rounding_method="floor",
        )
        return e.conv(e(y), 4, name="b")

    return network


def extreme(compare, factor):
    """Compare what is made for that with what is read elsewhere too, or with itself pooled."""

    def network(e, x):
        a = e(op.multiply(e.conv(x, name="a"), const(factor)))
        b = e.conv(x, name="b")
        c = e(compare(e.conv(x, name="c"), e.mean(b)))
        return e.conv(e(compare(a, b)), 4, name="d"), e.conv(c, 4, name="e"), e.conv(b, name="f")

    return network


LAYER = "qconv2d requantize"
EVEN = ((2, 8, 8, 8),)
CASES = {
    "conv, bias, relu": Case(lambda e, x: e.relu(e.conv(x, 16)), LAYER),
    "conv, norm, relu6": Case(lambda e, x: e(op.clip(e.norm(e.conv(x, 16)), 0, 6)), LAYER),
    "clip on both sides": Case(lambda e, x: e(op.clip(e.conv(x), -0.5, 0.7)), LAYER),
    "a factor after a clip": Case(
        lambda e, x: e(op.multiply(e(op.clip(e.conv(x), 0, 1)), const(0.25))), LAYER
    ),
    "a negative factor": Case(
        lambda e, x: e.relu(e(op.multiply(e.conv(x), const(normal(8, 1, 1))))), LAYER
    ),
    "from a constant": Case(
        lambda e, x: e.relu(e(op.subtract(const(normal(8, 1, 1)), e.conv(x)))), LAYER
    ),
    "depthwise separable": Case(
        lambda e, x: e.conv(e(op.clip(e.norm(e.conv(x, groups=8, name="a")), 0, 6)), 8, 1),
        f"{LAYER} {LAYER}",
    ),
    "strides and dilation": Case(
        lambda e, x: e.conv(x, 4, groups=2, strides=2, dilation=2, padding=[2, 1, 0, 3]), LAYER
    ),
    "residual": Case(
        lambda e, x: e.relu(e(op.add(e.conv(e.relu(e.conv(x, name="a")), name="b"), x))),
        f"{LAYER} {LAYER}",
    ),
    "residual first": Case(lambda e, x: e.relu(e(op.add(x, e.conv(x)))), LAYER),
    "difference": Case(lambda e, x: e.relu(e(op.subtract(e.conv(x), x))), LAYER),
    "difference, layer second": Case(lambda e, x: e.relu(e(op.subtract(x, e.conv(x)))), LAYER),
    "downsampling residual": Case(downsample, f"{LAYER} {LAYER} {LAYER} {LAYER}"),
    "a residual of one value per channel": Case(
        lambda e, x: (lambda y: e(op.add(y, e.mean(y))))(e.conv(x)),
        f"{LAYER} pool_sum requantize requantize",
    ),
    "twice the same": Case(
        lambda e, x: (lambda y: e(op.add(y, y)))(e.conv(x)), f"{LAYER} requantize"
    ),
    "a tensor less itself": Case(
        lambda e, x: (lambda y: e(op.subtract(y, y)))(e.conv(x)), f"{LAYER} requantize"
    ),
    "the greater of two": Case(
        extreme(op.maximum, 1.0),
        f"{LAYER} {LAYER} {LAYER} pool_sum requantize maximum requantize maximum "
        f"{LAYER} {LAYER} {LAYER}",
    ),
    "the lesser of two of different ranges": Case(
        extreme(op.minimum, 0.05),
        f"{LAYER} {LAYER} {LAYER} pool_sum requantize minimum requantize minimum "
        f"{LAYER} {LAYER} {LAYER}",
    ),
    "a bound for each channel": Case(
        one_function(lambda e, y: e(op.maximum(y, const(np.linspace(-1, 1, 8)[:, None, None])))),
        f"{LAYER} broadcast_to maximum {LAYER}",
    ),
    "the greater of two halves": Case(
        one_function(
            lambda e, y: e(
                op.maximum(*(e(op.strided_slice(y, [1], [i], [i + 4])) for i in (0, 4)))
            )
        ),
        f"{LAYER} strided_slice strided_slice maximum {LAYER}",
    ),
    "the least of the channels": Case(
        one_function(lambda e, y: e(op.min(y, [1], keepdims=True))), f"{LAYER} min {LAYER}"
    ),
    "dense block": Case(
        dense_block,
        f"{LAYER} {LAYER} concat requantize {LAYER} concat requantize {LAYER}",
    ),
    "shared inputs of concats": Case(
        shared_concat, f"{LAYER} {LAYER} nn.max_pool2d concat concat {LAYER} {LAYER}"
    ),
    "hard-swish": Case(hard_swish, f"{LAYER} table {LAYER}"),
    "x * sigmoid(x)": Case(
        one_function(lambda e, y: e(op.multiply(y, e(op.sigmoid(y))))), f"{LAYER} table {LAYER}"
    ),
    "leaky relu": Case(leaky, f"{LAYER} {LAYER} table {LAYER}"),
    "squeeze-excite": Case(
        squeeze_excite,
        f"{LAYER} pool_sum requantize {LAYER} {LAYER} qmultiply requantize {LAYER}",
    ),
    "product of two layers": Case(
        lambda e, x: e(op.multiply(e.conv(x, name="a"), e.conv(x, name="b"))),
        f"{LAYER} {LAYER} qmultiply requantize",
    ),
    "average without padding": Case(
        average((3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=False),
        f"{LAYER} pool_sum requantize",
    ),
    "average with padding": Case(
        average((3, 3), (2, 2), (1, 1, 1, 1), count_include_pad=True),
        f"{LAYER} pool_sum requantize",
    ),
    "average, ceil": Case(
        average((3, 3), (2, 2), ceil_mode=True), f"{LAYER} pool_sum requantize", EVEN
    ),
    "average, ceil, with padding": Case(
        average((3, 3), (2, 2), ceil_mode=True, count_include_pad=True),
        f"{LAYER} pool_sum requantize",
        EVEN,
    ),
    "average without padding, then a bias": Case(
        lambda e, x: e.relu(
            e(op.add(e(op.nn.avg_pool2d(e.conv(x), (3, 3), (2, 2), (1, 1, 1, 1))),
                     const(normal(8, 1, 1))))
        ),
        f"{LAYER} pool_sum requantize",
    ),
    "maximum, ceil": Case(
        lambda e, x: e(op.nn.max_pool2d(e.conv(x), (3, 3), (2, 2), (1, 1, 1, 1), ceil_mode=True)),
        f"{LAYER} nn.max_pool2d",
        EVEN,
    ),
    "classifier": Case(
        lambda e, x: e.dense(e(op.mean(e.relu(e.conv(x)), [-1, -2])), 5),
        f"{LAYER} pool_sum requantize reshape qdense requantize",
    ),
    "symbolic batch": Case(
        classifier,
        f"{LAYER} nn.max_pool2d pool_sum requantize concat reshape qdense requantize",
        ((BATCH, 8, 9, 9),),
    ),
    "pad with a value": Case(
        one_function(
            lambda e, y: e(op.nn.pad(y, [0, 0, 0, 0, 1, 2, 1, 0], "constant", 0.7))
        ),
        f"{LAYER} nn.pad {LAYER}",
    ),
    "a choice by a comparison": Case(
        one_function(
            lambda e, y: e(op.where(e(op.greater(y, const(0.1))), y, e(op.multiply(y, const(0.2)))))
        ),
        f"{LAYER} table {LAYER}",
    ),
    "truth values as numbers": Case(
        one_function(
            lambda e, y: e(
                op.multiply(y, e(op.astype(e(op.less(y, const(0.4))), "float32")))
            )
        ),
        f"{LAYER} table {LAYER}",
    ),
    "the greater of two functions": Case(
        one_function(lambda e, y: e(op.maximum(y, e(op.multiply(y, const(0.2)))))),
        f"{LAYER} table {LAYER}",
    ),
    "a choice between two tensors": Case(
        chosen,
        f"{LAYER} requantize {LAYER} table astype dequantize dequantize where quantize {LAYER}",
    ),
    "take": Case(
        one_function(lambda e, y: e(op.take(y, qop.constant(np.array([7, 0, 0, 3])), 1))),
        f"{LAYER} take {LAYER}",
    ),
    "tile": Case(one_function(lambda e, y: e(op.tile(y, [1, 2, 1, 3]))), f"{LAYER} tile {LAYER}"),
    "expand": Case(
        expanded,
        f"{LAYER} pool_sum requantize broadcast_to {LAYER}",
    ),
    "pad by reflection": Case(
        one_function(lambda e, y: e(op.nn.pad(y, [0, 0, 0, 0, 1, 2, 1, 0], "reflect"))),
        f"{LAYER} nn.pad {LAYER}",
    ),
    "slices": Case(
        slices, f"{LAYER} strided_slice strided_slice strided_slice {LAYER} requantize {LAYER}"
    ),
    "channel shuffle": Case(shuffle, f"{LAYER} reshape permute_dims reshape {LAYER}"),
    "nearest resize": Case(resized("nearest_neighbor"), f"{LAYER} image.resize2d {LAYER}"),
    "linear resize": Case(resized("linear"), f"{LAYER} image.resize2d {LAYER}"),
    "dense layers": Case(
        lambda e, x: e.dense(e.relu(e.dense(x, 16, "a")), 4, "b"),
        "qdense requantize qdense requantize",
        ((3, 20),),
    ),
    "dense layers of rank 3": Case(
        lambda e, x: e.dense(e.relu(e.dense(x, 16, "a")), 4, "b"),
        "qdense requantize qdense requantize",
        ((2, 5, 20),),
    ),
    "transposed convolution in groups": Case(
        transposed, "qconv2d_transpose requantize", ((2, 8, 5, 5),)
    ),
    "transposed convolution with gaps": Case(
        transposed_with_gaps, f"{LAYER} qconv2d_transpose requantize", ((2, 8, 5, 5),)
    ),
    "softmax in the middle": Case(
        one_function(lambda e, y: e(op.nn.softmax(y, 1))),
        f"{LAYER} dequantize nn.softmax quantize {LAYER}",
    ),
    "softmax at the end": Case(
        lambda e, x: e(op.nn.softmax(e.dense(x, 16))),
        "qdense requantize dequantize nn.softmax",
        ((3, 20),),
    ),
    "maximum of two tensors": Case(
        lambda e, x: e.conv(e(op.maximum(e.conv(x, name="a"), e.conv(x, name="b"))), 4),
        f"{LAYER} {LAYER} maximum {LAYER}",
    ),
    "means of rows": Case(
        lambda e, x: e.conv(e(op.mean(e.conv(x, name="a"), [3], keepdims=True)), 4, 1),
        f"{LAYER} pool_sum requantize {LAYER}",
    ),
    "slopes per channel": Case(
        sloped, f"{LAYER} {LAYER} requantize nn.max_pool2d requantize {LAYER}"
    ),
    "shifts behind slopes": Case(shifted_slopes, f"{LAYER} {LAYER} requantize {LAYER}"),
    "signs of slopes": Case(
        signs_of_slopes, "qconv2d requantize qconv2d requantize maximum qconv2d requantize"
    ),
    "sums that broadcast": Case(
        broadcast,
        f"{LAYER} pool_sum requantize {LAYER} strided_slice requantize requantize {LAYER}",
    ),
    "a gated sum": Case(gated, f"{LAYER} pool_sum requantize qmultiply requantize"),
    "dense layers on images of channels last": Case(
        channels_last, f"permute_dims qdense requantize permute_dims {LAYER}"
    ),
    "constants of every position": Case(
        lambda e, x: e.conv(e(op.multiply(e(op.add(e.relu(e.conv(x, name="a")), const(
            normal(1, 8, 9, 9)))), const(normal(9, 1)))), 4),
        f"{LAYER} requantize {LAYER}",
    ),
    "a constant in a concat": Case(
        lambda e, x: e.conv(e(op.concat([e.conv(x, name="a"), const(normal(2, 1, 9, 9))], 1)), 4),
        f"{LAYER} broadcast_to concat {LAYER}",
    ),
    "a tensor read by several": Case(read_twice, f"{LAYER} table {LAYER} requantize"),
    "an input read by two": Case(
        lambda e, x: e(op.add(e.conv(x), e(op.nn.max_pool2d(x, (3, 3), (1, 1), (1, 1, 1, 1))))),
        f"nn.max_pool2d {LAYER}",
    ),
    "two inputs": Case(
        lambda e, x, y: e(op.add(e.conv(x), y)), f"quantize {LAYER}", (SHAPE, SHAPE)
    ),
    "an input moved first": Case(
        lambda e, x: e.conv(e(op.concat([e(op.strided_slice(x, [2], [i], [i + 8], [2]))
                                         for i in range(2)], 1)), 4),
        f"strided_slice strided_slice concat {LAYER}",
    ),
    "an output that is read": Case(
        lambda e, x: (lambda y: (y, e.conv(y, 4, name="b")))(e.relu(e.conv(x, name="a"))),
        f"{LAYER} requantize {LAYER}",
    ),
    "two outputs": Case(
        lambda e, x: (lambda y: (e.conv(y, 3, name="b"), e(op.sigmoid(e.conv(y, 4, name="c")))))(
            e.relu(e.conv(x, name="a"))
        ),
        f"{LAYER} {LAYER} {LAYER} table",
    ),
    "a concat of outputs": Case(
        lambda e, x: e(op.concat([e.conv(x, 3, name="a"), e(op.sigmoid(e.conv(x, 4)))], 1)),
        f"{LAYER} {LAYER} table concat",
    ),
}  # fmt: skip


def network(case):
    return graph(lambda emit, *x: case.body(Emitter(emit), *x), *case.shapes)


def inputs_of(case):
    shapes = [[v if isinstance(v, int) else 3 for v in shape] for shape in case.shapes]
    return [normal(*shape, seed=100 + i) for i, shape in enumerate(shapes)]


def between_borders(module):
    names = op_names(module)
    names = names[names.index("quantize") + 1 :]
    while names[-1] == "dequantize":
        names.pop()
    return " ".join(names)


@pytest.mark.parametrize("name", CASES)
def test_region(name):
    case = CASES[name]
    levels = check(network(case), *inputs_of(case))
    relax.analysis.well_formed(levels.integer)
    assert between_borders(levels.integer) == case.integer


@pytest.mark.parametrize("scheme", ["symmetric", "auto", "asymmetric"])
@pytest.mark.parametrize("name", ["downsampling residual", "dense block", "squeeze-excite"])
def test_schemes(name, scheme):
    check(network(CASES[name]), *inputs_of(CASES[name]), activation_scheme=scheme, steps=2)


@pytest.mark.parametrize(
    "choice", list(map(BitChoice.parse, ("w4a8", "w4a4", "w8a4", "w2a8", "w6a5", "w4a8g32")))
)
def test_widths(choice):
    case = CASES["residual"]
    module = network(case)
    hidden = next(
        span_name(call) or str(var.name)
        for var, call in bindings_of(module["main"])
        if qop.is_call(call, "relax.nn.relu")
    )
    levels = quantize(
        module, inputs_of(case), weights=dict.fromkeys("ab", choice.weight),
        activations={hidden: choice.activation},
    )  # fmt: skip
    expected = run_twin(levels.calibrated, inputs_of(case), mode="quantized")
    # One step of the hidden activation, of 255 or 15, moves the result by several.
    narrow = 512 // choice.activation.qmax
    assert distance(simulate(levels.integer, *inputs_of(case)), expected) <= max(3, narrow)
    for call, held in zip(
        calls(levels.integer, qop.QCONV2D), [UINT8, choice.activation], strict=True
    ):
        weight, attrs = qop.constant_array(call.args[1]), qop.attributes(call)
        assert weight.dtype == np.int8
        assert (weight.min(), weight.max()) >= (choice.weight.qmin, 0)
        assert weight.max() <= choice.weight.qmax
        assert attrs["choice"] == str(BitChoice(choice.weight, held))
        assert attrs["input_qmax"] <= held.qmax
        _, multiplier = qop.contraction_operands(call)
        assert (multiplier is not None) == attrs["grouped"] == (choice.weight.group > 0)
        if multiplier is not None:
            values = qop.constant_array(multiplier)
            assert values.shape == weight.shape
            assert 1 <= values.min() < values.max() <= GROUP_LEVELS


WEIGHT = np.array([[1.0, -0.5], [0.25, 2.0]], np.float32)


def calibrated_convolution():
    """Return relu(conv(x) + bias) with scales that are powers of two: no rounding anywhere."""

    def fake_quant(x, name, scale, zero_point, role, low, high, axis=-1):
        attrs = {
            "id": name,
            "role": role,
            "format": "int8" if role == "weight" else "uint8",
            "scheme": "asymmetric",
            "group": "",
            "qmin": low,
            "qmax": high,
            "axis": axis,
            "groups": 1,
            "calibrated": 1,
            "fixed": 0,
        }
        numbers = [qop.constant(np.float32(scale)), qop.constant(np.int32([zero_point]))]
        return qop.emit(qop.FAKE_QUANT, [x, *numbers], attrs)

    def body(emit, x):
        x = emit(fake_quant(x, "x", [0.5], 10, "activation", 0, 255))
        weight = const(WEIGHT.reshape(2, 2, 1, 1))
        w = emit(fake_quant(weight, "w", [0.25, 0.25], 0, "weight", -127, 127, 0))
        y = emit(op.nn.conv2d(x, w, padding=1), "conv")
        y = emit(op.nn.relu(emit(op.add(y, const([[[2.0]], [[-4.0]]])))))
        return emit(fake_quant(y, "y", [0.125], 5, "activation", 0, 255))

    return graph(body, (1, 2, 4, 4))


def test_a_convolution_exactly():
    # 0.5 * 0.25 / 0.125 = 1 is dyadic, so that the weight scale stays.
    after = InsertRequantize()(calibrated_convolution())
    (conv,), (requantize,) = calls(after, qop.QCONV2D), calls(after, qop.REQUANTIZE)
    weight, bias = (qop.constant_array(a) for a in conv.args[1:])
    multiplier, shift, offset = (qop.constant_array(a) for a in requantize.args[1:])
    np.testing.assert_array_equal(weight.reshape(2, 2), WEIGHT / 0.25)
    # -zero_point * sum(weight)
    np.testing.assert_array_equal(bias, [-10 * 2, -10 * 9])
    np.testing.assert_array_equal(np.ldexp(multiplier.astype(np.float64), -shift), [1.0, 1.0])
    np.testing.assert_array_equal(np.ldexp(offset.astype(np.float64), -shift), [16.0, -32.0])
    assert (weight.dtype, bias.dtype, multiplier.dtype) == (np.int8, np.int32, np.int32)
    assert qop.attributes(conv) == {
        "input_zero_point": 10,
        "out_dtype": "int32",
        "id": "conv",
        "choice": "w8a8",
        "grouped": 0,
        "bounded": 0,
        "input_qmin": 0,
        "input_qmax": 255,
        "epilogue": 0,
        "strides": [1, 1],
        "padding": [1, 1, 1, 1],
        "dilation": [1, 1],
        "groups": 1,
        "layout": "NCHW",
    }
    assert qop.attributes(requantize) == {
        "acc_zero_point": 0,
        "residual_zero_point": 0,
        "output_zero_point": 5,
        "qmin": 5,  # relu
        "qmax": 255,
        "axis": 1,
        "compute_dtype": "int32",
        "out_dtype": "uint8",
        "id": "conv",
    }
    module, x = calibrated_convolution(), normal(1, 2, 4, 4) * 10
    np.testing.assert_array_equal(simulate(after, x)[0], run_twin(module, [x], mode="quantized")[0])


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e-12, 1e-6, 1e-3])
@pytest.mark.parametrize("bias", [50.0, -1e4])
def test_a_dead_channel_with_a_large_bias(factor, bias):
    weight, constants = normal(8, 8, 3, 3) * np.float32(0.1), np.zeros((8, 1, 1), np.float32)
    weight[2] *= np.float32(factor)
    constants[2] = bias

    def body(emit, x):
        y = emit(op.nn.conv2d(x, const(weight), padding=1))
        y = emit(op.add(y, const(constants)))
        return emit(op.reshape(y, [2, -1]))

    x = normal(*SHAPE)
    levels = quantize(graph(body, SHAPE), [x])
    expected = run_twin(levels.float_, [x])
    assert distance(simulate(levels.integer, x), expected) <= 1


def test_a_layer_of_zeros():
    module = graph(lambda emit, x: emit(op.nn.conv2d(x, const(np.zeros((4, 8, 1, 1))))), SHAPE)
    x = normal(*SHAPE)
    np.testing.assert_array_equal(simulate(quantize(module, [x]).integer, x)[0], 0)


def test_an_accumulator_beyond_32_bits_names_the_layer():
    weight = const(np.ones((2, 8192, 3, 3)))
    module = graph(lambda emit, x: emit(op.nn.conv2d(x, weight), "huge_3"), (1, 8192, 3, 3))
    with pytest.raises(QuantizationError, match=r"'huge_3'.*32 bits.*73728 products"):
        quantize(module, [np.abs(normal(1, 8192, 3, 3))])


def test_a_graph_that_is_not_calibrated():
    module = AnnotateQuantization()(network(CASES["residual"]))
    with pytest.raises(QuantizationError, match="not calibrated"):
        InsertRequantize()(module)


def test_a_pool_over_an_unknown_extent_names_the_node():
    height = tirx.Var("h", "int64")
    module = graph(
        lambda emit, x: emit(op.mean(emit(op.nn.relu(x)), [2, 3], keepdims=True), "pool_1"),
        (1, 4, height, 9),
    )
    ranges = {"x0": (-1.0, 1.0), "lv": (0.0, 1.0), "pool_1": (0.0, 1.0)}
    with pytest.raises(QuantizationError, match=r"'pool_1'.*not known"):
        InsertRequantize()(ApplyCalibration(ranges)(AnnotateQuantization()(module)))


def test_a_float_graph_is_left_as_it_is():
    module = graph(lambda emit, x: emit(op.nn.softmax(emit(op.reshape(x, [2, -1])))), SHAPE)
    tvm.ir.assert_structural_equal(InsertRequantize()(module), module)


def test_integers_are_left_as_they_are():
    case = CASES["squeeze-excite"]
    levels = quantize(network(case), inputs_of(case))
    tvm.ir.assert_structural_equal(InsertRequantize()(levels.integer), levels.integer)


def test_a_region_of_three_tensors_is_refused():
    levels = quantize(network(CASES["residual"]), inputs_of(CASES["residual"]))
    whole = next(v for v in reversed(list(bindings_of(levels.calibrated["main"])))
                 if qop.is_call(v[1], "relax.add"))  # fmt: skip

    class Third(DataflowRewriter):
        def visit_binding(self, var, value):
            if not var.same_as(whole[0]):
                return None
            total = self.emit(self.copy(value))
            return op.add(total, self.lookup(value.args[1]))

    with pytest.raises(QuantizationError, match=r"adds 3 tensors in one rounding"):
        InsertRequantize()(Third(levels.calibrated).rewrite())


def test_results_that_are_constants_stay_as_they_are():
    weight = normal(5, 4, 3, 3)
    body = lambda e, x: (e.conv(x), e(op.add(const(weight), const(np.float32(0)))))  # noqa: E731
    levels = check(graph(lambda emit, x: body(Emitter(emit), x), SHAPE), normal(*SHAPE))
    np.testing.assert_array_equal(simulate(levels.integer, normal(*SHAPE))[1], weight)
