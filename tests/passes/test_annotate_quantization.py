import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from tests.passes.graphs import calls, const, graph, normal, op_names, run_twin
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.region_operators import is_linear, is_mover, is_window_mean, varies_along

op = relax.op
SHAPE = (2, 4, 6, 6)


def conv(emit, x, outputs=4, name="conv"):
    weight = const(normal(outputs, int(x.ty.shape.values[1]), 3, 3))
    return emit(op.nn.conv2d(x, weight, padding=1), name)


def fake_quant(x, name, **changes):
    attrs = {
        "id": name,
        "role": "activation",
        "format": "uint8",
        "scheme": "asymmetric",
        "group": "",
        "axis": -1,
        "qmin": 0,
        "qmax": 0,
        "calibrated": 0,
        "fixed": 0,
    }
    if "groups" not in changes:  # an activation
        attrs |= {"shares": "zero_point", "least": 0.0, "greatest": 0.0, "range_of": ""}
        attrs |= {"nonzero": 0}
    unset = [qop.constant(np.zeros(1, np.float32)), qop.constant(np.zeros(1, np.int32))]
    return qop.emit(qop.FAKE_QUANT, [x, *unset], attrs | changes)


def weight_quant(name, array, axis=0, groups=1):
    options = {"role": "weight", "scheme": "symmetric", "axis": axis, "groups": groups}
    return fake_quant(const(array), f"{name}.weight", format="int8", **options)


def edges(module):
    return [
        qop.attributes(c)
        for c in calls(module, qop.FAKE_QUANT)
        if qop.attributes(c)["role"] != "weight"
    ]


def quantized_after(module):
    """Return what stands before each fake_quant of an activation, in order."""
    names = op_names(module)
    activations = [qop.attributes(c)["role"] != "weight" for c in calls(module, qop.FAKE_QUANT)]
    positions = [i for i, name in enumerate(names) if name == "fake_quant"]
    before = ["input", *names]
    return [before[p] for p, is_edge in zip(positions, activations, strict=True) if is_edge]


def test_a_region_between_two_fake_quants():
    weight, bias, second = normal(4, 4, 3, 3), normal(1, 4, 1, 1), normal(5, 4, 1, 1)

    def before(emit, x):
        y = emit(op.add(emit(op.nn.conv2d(x, const(weight), padding=1), "a"), const(bias)), "a")
        y = emit(op.nn.max_pool2d(emit(op.nn.relu(y), "relu"), (2, 2), (2, 2)))
        return emit(op.nn.conv2d(y, const(second)), "b")

    def expected(emit, x):
        x = emit(fake_quant(x, "x0"))
        w = emit(weight_quant("a", weight))
        y = emit(op.add(emit(op.nn.conv2d(x, w, padding=1)), const(bias)))
        y = emit(fake_quant(emit(op.nn.relu(y)), "relu"))
        y = emit(op.nn.max_pool2d(y, (2, 2), (2, 2)))
        y = emit(op.nn.conv2d(y, emit(weight_quant("b", second))))
        return emit(fake_quant(y, "b", role="output", format="int16", scheme="symmetric"))

    module = graph(before, SHAPE)
    after = AnnotateQuantization()(module)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after, graph(expected, SHAPE))
    x = normal(*SHAPE)
    np.testing.assert_array_equal(run_twin(after, [x])[0], run_twin(module, [x])[0])


def test_a_float_graph_is_left_as_it_is():
    def body(emit, x):
        y = emit(op.permute_dims(x, [0, 2, 3, 1]))
        part = emit(op.strided_slice(emit(op.nn.softmax(y)), [1], [0], [2]))
        return part, emit(op.reshape(y, [2, -1]))

    module = graph(body, SHAPE)
    tvm.ir.assert_structural_equal(AnnotateQuantization()(module), module)


REGIONS = {
    "bias, factor and clip": (
        lambda emit, x: emit(op.clip(emit(op.multiply(emit(op.add(
            conv(emit, x), const(normal(1, 4, 1, 1)))), const(2.0))), 0, 6)),
        ["input", "clip"],
    ),
    "a positive factor after a clip": (
        lambda emit, x: emit(op.multiply(emit(op.clip(conv(emit, x), 0, 6)), const(0.5))),
        ["input", "multiply"],
    ),
    "a negative factor after a clip": (
        lambda emit, x: emit(op.multiply(emit(op.clip(conv(emit, x), 0, 6)), const(-0.5))),
        ["input", "clip", "multiply"],
    ),
    "an addition after a clip": (
        lambda emit, x: emit(op.add(emit(op.clip(conv(emit, x), 0, 6)), const(0.5))),
        ["input", "clip", "add"],
    ),
    "a residual": (
        lambda emit, x: emit(op.nn.relu(emit(op.add(conv(emit, x), x)))),
        ["input", "relu"],
    ),
    "two layers added": (
        lambda emit, x: emit(op.nn.relu(emit(op.add(conv(emit, x, name="a"), conv(emit, x))))),
        ["input", "conv2d", "relu"],
    ),
    "three layers added": (
        lambda emit, x: emit(op.add(emit(op.add(conv(emit, x, name="a"),
                                                conv(emit, x, name="b"))), conv(emit, x))),
        ["input", "conv2d", "add", "add"],
    ),
    "a residual with several readers": (
        lambda emit, x: (lambda y: emit(op.add(conv(emit, y, name="b"), y)))(conv(emit, x)),
        ["input", "conv2d", "add"],
    ),
    "a slope of a layer": (
        lambda emit, x: emit(op.nn.relu(emit(op.nn.leakyrelu(conv(emit, x), -0.1)))),
        ["input", "relu"],
    ),
    "a slope too steep": (
        lambda emit, x: emit(op.nn.leakyrelu(conv(emit, x), 40.0)),
        ["input", "conv2d", "leakyrelu"],
    ),
    "a slope of a sum": (
        lambda emit, x: emit(op.nn.leakyrelu(emit(op.add(conv(emit, x), x)), 0.1)),
        ["input", "add", "leakyrelu"],
    ),
    "a chain of functions": (
        lambda emit, x: (lambda y: emit(op.multiply(y, emit(op.sigmoid(y)))))(conv(emit, x)),
        ["input", "conv2d", "multiply"],
    ),
    "a product": (
        lambda emit, x: emit(op.multiply(conv(emit, x, name="a"), conv(emit, x))),
        ["input", "conv2d", "conv2d", "multiply"],
    ),
    "a constant per channel on a quantized tensor": (
        lambda emit, x: emit(op.multiply(x, const(normal(1, 4, 1, 1)))),
        ["input", "multiply"],
    ),
    "pooling": (
        lambda emit, x: emit(op.mean(emit(op.nn.avg_pool2d(conv(emit, x), (2, 2), (2, 2))),
                                     [2, 3], keepdims=True)),
        ["input", "conv2d", "avg_pool2d", "mean"],
    ),
    "movers keep the scale of their source": (
        lambda emit, x: emit(op.reshape(emit(op.permute_dims(conv(emit, x), [0, 2, 3, 1])),
                                        [2, -1])),
        ["input", "conv2d"],
    ),
    "moving an input": (
        lambda emit, x: conv(emit, emit(op.strided_slice(x, [2], [0], [4]))),
        ["input", "conv2d"],
    ),
    "a float island": (
        lambda emit, x: conv(emit, emit(op.nn.softmax(conv(emit, x, name="a")))),
        ["input", "conv2d", "softmax", "conv2d"],
    ),
    "float at the end": (
        lambda emit, x: emit(op.nn.softmax(conv(emit, x))),
        ["input", "conv2d"],
    ),
    "a slice of a float tensor": (
        lambda emit, x: conv(emit, emit(op.strided_slice(
            emit(op.nn.softmax(x)), [2], [0], [4]))),
        ["strided_slice", "conv2d"],
    ),
    "a constant among the inputs of a concat": (
        lambda emit, x: conv(emit, emit(op.concat([conv(emit, x, name="a"),
                                                   const(normal(*SHAPE))], 1))),
        ["input", "conv2d", "broadcast_to", "conv2d"],
    ),
    "a constant per position": (
        lambda emit, x: conv(emit, emit(op.add(conv(emit, x, name="a"),
                                               const(normal(1, 4, 6, 6))))),
        ["input", "conv2d", "add", "conv2d"],
    ),
    "a product of two tensors": (
        lambda emit, x: emit(op.matmul(x, emit(op.permute_dims(x, [0, 1, 3, 2])))),
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REGIONS)
def test_what_is_held_as_integers(case):
    body, expected = REGIONS[case]
    after = AnnotateQuantization()(graph(body, SHAPE))
    relax.analysis.well_formed(after)
    assert [name.removeprefix("nn.") for name in quantized_after(after)] == expected


def test_a_tensor_that_is_read_and_returned_is_returned_in_16_bits():
    def body(emit, x):
        y = emit(op.nn.relu(conv(emit, x)), "relu")
        return emit(op.reshape(y, [2, -1])), conv(emit, y, name="b")

    module = AnnotateQuantization()(graph(body, SHAPE))
    found = [(e["id"], e["role"], e["format"]) for e in edges(module)]
    assert found == [
        ("x0", "activation", "uint8"),
        ("relu.output", "output", "int16"),
        ("relu", "activation", "uint8"),
        ("b", "output", "int16"),
    ]
    by_id = {qop.attributes(c)["id"]: c for c in calls(module, qop.FAKE_QUANT)}
    values = dict(bindings_of(module["main"]))
    assert qop.attributes(values[by_id["relu"].args[0]])["id"] == "relu.output"
    returned = values[values[module["main"].body.body.fields[0]]]
    assert qop.attributes(values[returned.args[0]])["id"] == "relu.output"


def test_an_input_that_is_read_and_returned_is_returned_as_it_is():
    body = lambda emit, x: (x, conv(emit, x))  # noqa: E731
    module = AnnotateQuantization()(graph(body, SHAPE))
    assert [e["format"] for e in edges(module)] == ["uint8", "int16"]
    values = dict(bindings_of(module["main"]))
    assert values[module["main"].body.body.fields[0]].same_as(module["main"].params[0])


def test_a_reshaped_output_keeps_16_bits():
    def body(emit, x):
        y = emit(op.mean(conv(emit, x), [2, 3], keepdims=True), "pool")
        return emit(op.reshape(y, [2, 4]))

    found = {
        e["id"]: (e["role"], e["format"]) for e in edges(AnnotateQuantization()(graph(body, SHAPE)))
    }
    assert found["pool"] == ("output", "int16")

    def read(emit, x):
        return emit(op.matmul(body(emit, x), const(normal(4, 3))), "fc")

    found = {
        e["id"]: (e["role"], e["format"]) for e in edges(AnnotateQuantization()(graph(read, SHAPE)))
    }
    assert found["pool"] == ("activation", "uint8")


def test_an_output_that_is_pooled_has_16_bits():
    body = lambda emit, x: emit(op.nn.max_pool2d(conv(emit, x), (2, 2)))  # noqa: E731
    assert [e["format"] for e in edges(AnnotateQuantization()(graph(body, SHAPE)))] == [
        "uint8",
        "int16",
    ]


def test_a_pad_says_what_its_tensor_has_to_hold():
    def body(emit, x):
        y = emit(op.nn.relu(conv(emit, x)), "relu")
        padded = emit(op.nn.pad(y, [0, 0, 0, 0, 1, 1, 1, 1], pad_value=-114.0))
        return emit(op.add(conv(emit, padded, name="b"), const(np.float32(1))))

    found = {e["id"]: (e["least"], e["greatest"]) for e in
             edges(AnnotateQuantization()(graph(body, SHAPE)))}  # fmt: skip
    assert found["relu"] == (-114.0, 0.0)
    assert found["x0"] == (0.0, 0.0)


def test_inputs_of_a_concat_share_a_scale_where_a_table_reads_them():
    def body(emit, x, reader):
        a, b = (emit(op.nn.relu(conv(emit, x, name=n)), n) for n in "ab")
        return emit(reader(emit(op.concat([a, b], 1))), "reader")

    def shared(reader):
        module = AnnotateQuantization()(graph(lambda emit, x: body(emit, x, reader), SHAPE))
        return {e["id"]: e["shares"] for e in edges(module)}

    assert shared(op.sigmoid)["a"] == shared(op.sigmoid)["b"] == "scale"
    assert shared(lambda x: op.nn.avg_pool2d(x, (2, 2)))["a"] == "zero_point"


def compared(emit, x):
    """Return the greater of what nothing else reads and what another layer does."""
    a, b = (conv(emit, x, name=name) for name in "ab")
    return a, b, emit(op.maximum(a, b), "extreme")


def test_what_is_compared_only_has_the_range_of_the_result():
    def body(emit, x):
        _, b, extreme = compared(emit, x)
        return emit(op.nn.relu(conv(emit, extreme, name="c"))), conv(emit, b, name="d")

    found = {e["id"]: (e["format"], e["range_of"]) for e in
             edges(AnnotateQuantization()(graph(body, SHAPE)))}  # fmt: skip
    assert {name: found[name] for name in ("a", "b", "extreme")} == {
        "a": ("uint8", "extreme"), "b": ("uint8", ""), "extreme": ("uint8", ""),
    }  # fmt: skip


def test_extremes_may_follow_each_other_without_end_and_be_compared_with_each_other():
    def body(emit, x):
        y, z = conv(emit, x, name="a"), conv(emit, x, name="b")
        for _ in range(40):
            y = emit(op.maximum(y, emit(op.minimum(y, z))))
        for _ in range(1200):
            y = emit(op.maximum(z, y))
        return y

    assert {e["format"] for e in edges(AnnotateQuantization()(graph(body, SHAPE)))} == {
        "uint8",
        "int16",
    }


def test_what_an_output_is_chosen_from_has_16_bits():
    def body(emit, x):
        extreme = compared(emit, x)[2]
        return extreme, conv(emit, extreme, name="c")

    module = AnnotateQuantization()(graph(body, SHAPE))
    found = {e["id"]: (e["format"], e["range_of"]) for e in edges(module)}
    assert found["a.output"] == ("int16", "extreme.output")
    assert found["extreme.output"] == ("int16", "")
    assert found["extreme"] == ("uint8", "")
    (call,) = calls(module, "relax.maximum")
    made = dict(bindings_of(module["main"]))
    assert [qop.attributes(made[operand])["format"] for operand in call.args] == ["int16", "int16"]


def test_what_a_float_operator_divides_by_is_not_to_be_0():
    def body(emit, x):
        a, b = conv(emit, x, name="a"), emit(op.abs(conv(emit, x, name="b")), "abs")
        return emit(op.divide(a, b))

    found = {e["id"]: e["nonzero"] for e in edges(AnnotateQuantization()(graph(body, SHAPE)))}
    assert found == {"x0": 0, "a": 0, "b": 0, "abs": 1}


def test_an_extreme_of_one_tensor_keeps_its_scale():
    def body(emit, x):
        y = conv(emit, x)
        halves = [emit(op.strided_slice(y, [1], [i], [i + 2])) for i in (0, 2)]
        return conv(emit, emit(op.minimum(*halves), "extreme"), name="c")

    module = AnnotateQuantization()(graph(body, SHAPE))
    assert "extreme" not in {e["id"] for e in edges(module)}


def test_an_input_with_two_readers_is_quantized_once():
    body = lambda emit, x: emit(op.add(conv(emit, x), emit(op.nn.max_pool2d(x, (1, 1)))))  # noqa: E731
    assert len(edges(AnnotateQuantization()(graph(body, SHAPE)))) == 2


def test_inputs_of_a_concat_share_a_group():
    def body(emit, x):
        a, b, c = (emit(op.nn.relu(conv(emit, x, name=n)), n) for n in "abc")
        first = emit(op.concat([a, emit(op.nn.max_pool2d(b, (1, 1)))], 1))
        second = emit(op.concat([b, c], 1))
        d = emit(op.nn.relu(conv(emit, first, name="d")), "d")
        return emit(op.add(conv(emit, second, 4, name="e"), d))

    groups = {e["id"]: e["group"] for e in edges(AnnotateQuantization()(graph(body, SHAPE)))}
    assert groups["a"] == groups["b"] == groups["c"] != ""
    assert groups["x0"] == groups["d"] == ""


def test_ids_are_unique():
    def body(emit, x):
        y = conv(emit, emit(op.nn.relu(conv(emit, x, name="n")), "n"), name="n")
        return emit(op.nn.relu(y), "n")

    module = AnnotateQuantization()(graph(body, SHAPE))
    ids = [qop.attributes(c)["id"] for c in calls(module, qop.FAKE_QUANT)]
    assert ids == ["x0", "n.weight", "n", "n.weight:2", "n:2"]


def test_scheme():
    def body(emit, x):
        return conv(emit, emit(op.nn.relu(conv(emit, x, name="a")), "r"), name="b")

    annotate = AnnotateQuantization("symmetric")
    found = {
        qop.attributes(c)["id"]: (qop.attributes(c)["format"], qop.attributes(c)["scheme"])
        for c in calls(annotate(graph(body, SHAPE)), qop.FAKE_QUANT)
    }
    assert found == {
        "x0": ("uint8", "symmetric"),
        "a.weight": ("int8", "symmetric"),
        "r": ("uint8", "symmetric"),
        "b.weight": ("int8", "symmetric"),
        "b": ("int16", "symmetric"),
    }


@pytest.mark.parametrize(
    ("call", "weight", "axis", "groups"),
    [
        (lambda x, w: op.nn.conv2d(x, w, groups=2), (6, 2, 1, 1), 0, 2),
        (lambda x, w: op.nn.conv2d_transpose(x, w, groups=2), (4, 3, 1, 1), 1, 2),
        (op.matmul, (6, 5), 1, 1),
    ],
)
def test_weights_are_quantized_along_their_output_channels(call, weight, axis, groups):
    module = graph(lambda emit, x: emit(call(x, const(normal(*weight))), "layer"), SHAPE)
    (found,) = [
        qop.attributes(c)
        for c in calls(AnnotateQuantization()(module), qop.FAKE_QUANT)
        if qop.attributes(c)["role"] == "weight"
    ]
    assert (found["axis"], found["groups"], found["id"]) == (axis, groups, "layer.weight")


def test_a_symbolic_batch():
    batch = tirx.Var("n", "int64")
    body = lambda emit, x: emit(op.nn.relu(emit(op.add(conv(emit, x), x))))  # noqa: E731
    module = AnnotateQuantization()(graph(body, (batch, *SHAPE[1:])))
    assert len(edges(module)) == 2


@pytest.mark.parametrize(
    ("shape", "rank", "axis", "expected"),
    [
        ((), 4, 1, True),
        ((1, 1, 1, 1), 4, 1, True),
        ((4, 1, 1), 4, 1, True),
        ((1, 4, 1, 1), 4, 1, True),
        ((4,), 4, 3, True),
        ((4,), 2, 1, True),
        ((1, 4), 2, 1, True),
        ((4,), 4, 1, False),
        ((4, 1), 2, 1, False),
        ((1, 4, 6, 6), 4, 1, False),
        ((1, 4, 6, 6), 4, None, True),
        ((2, 4, 1, 1), 4, None, False),
        ((2, 1, 4, 1, 1), 4, None, False),
    ],
)
def test_varies_along(shape, rank, axis, expected):
    assert varies_along(np.ones(shape, np.float32), rank, axis) is expected


def the_call(body, shape=SHAPE):
    return list(calls_of(graph(lambda emit, x: emit(body(x)), shape)))[-1]


def calls_of(module):
    return [b.value for b in module["main"].body.blocks[0].bindings[:-1]]


def test_floats_on_their_way_to_the_user_are_not_rounded():
    def body(emit, x):
        total = emit(op.sum(conv(emit, x), [1], True))
        return emit(op.reshape(emit(op.sqrt(emit(op.add(total, const(9.0))))), (2, 36)))

    annotated = AnnotateQuantization()(graph(body, SHAPE))
    ids = [qop.attributes(call)["id"] for call in calls(annotated, qop.FAKE_QUANT)]
    assert ids == ["x0", "conv.weight", "conv"]


def test_floats_on_their_way_to_the_user_may_be_read_in_8_bits_too():
    def body(emit, x):
        y = emit(op.nn.softmax(x, 1))
        return emit(op.nn.relu(y)), conv(emit, y)

    annotated = AnnotateQuantization()(graph(body, SHAPE))
    softmax = next(var for var, value in bindings_of(annotated["main"])
                   if qop.is_call(value, "relax.nn.softmax"))  # fmt: skip
    assert calls(annotated, "relax.nn.relu")[0].args[0].same_as(softmax)
    ids = [qop.attributes(call)["id"] for call in calls(annotated, qop.FAKE_QUANT)]
    assert ids == ["lv", "conv.weight", "conv"]


def test_predicates_on_calls():
    one = np.float32(1.0)
    assert is_linear(the_call(lambda x: op.add(x, const(one))), one, False)
    assert not is_linear(the_call(lambda x: op.divide(const(one), x)), one, True)
    assert not is_linear(the_call(lambda x: op.maximum(x, const(one))), one, False)
    assert is_window_mean(the_call(lambda x: op.mean(x, [-1, 2], keepdims=True)))
    assert is_window_mean(the_call(lambda x: op.mean(x, [3], keepdims=True)))
    assert not is_window_mean(the_call(lambda x: op.mean(x, [2, 3])))
    assert not is_window_mean(the_call(lambda x: op.mean(x, [1], keepdims=True)))
    assert is_mover(the_call(lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1])))
    assert is_mover(the_call(lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], "reflect")))
    assert is_mover(the_call(lambda x: op.image.resize2d(x, (9, 9), method="nearest_neighbor")))
    assert is_mover(the_call(lambda x: op.image.resize2d(x, (9, 9), method="linear")))
    assert not is_mover(the_call(lambda x: op.image.resize2d(x, (9, 9), method="cubic")))


def test_movers_may_follow_each_other_without_end_and_join_again_and_again():
    """No recursion over their number, and no search of every way through them."""

    def body(emit, x):
        y = conv(emit, x)
        for _ in range(60):
            halves = [emit(op.strided_slice(y, [1], [begin], [begin + 2])) for begin in (0, 2)]
            y = emit(op.concat(halves, 1))
        for _ in range(1200):
            y = emit(op.nn.pad(y, [0] * 8))
        return conv(emit, y)

    module = AnnotateQuantization()(graph(body, SHAPE))
    assert len(edges(module)) == 3
