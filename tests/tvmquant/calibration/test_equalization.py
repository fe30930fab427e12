import numpy as np
import pytest
from tvm import relax, tirx

from tests.passes.graphs import calls, const, graph, normal
from tvmquant.calibration import calibrate
from tvmquant.graph import Graph
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes import pipeline
from tvmquant.quantization import calibrate as calibrate_graph
from tvmquant.quantization import quantize
from tvmquant.simulator import simulate
from tvmquant.twin import Twin

op = relax.op
ITEMS = normal(16, 4, 8, 8)
GAIN = np.float32([1.0, 100.0, 0.01, 1.0, 3.0, 1.0])


def network(readers, *, producer=op.nn.relu):
    """Return a network whose first layer has channels of very different range."""

    def body(emit, x):
        weight = normal(6, 4, 3, 3) * GAIN.reshape(-1, 1, 1, 1)
        y = emit(producer(emit(op.nn.conv2d(x, const(weight), padding=1), "first")), "uneven")
        return readers(emit, y)

    n = tirx.Var("N", "int64")
    module = graph(body, (n, 4, 8, 8))
    count = len(module["main"].body.body.fields) if isinstance(
        module["main"].body.body, relax.Tuple) else 1  # fmt: skip
    names = tuple(f"y{i}" for i in range(count))
    return Graph(module, "L0", "uneven", ("x",), names)


def balanced(*shape):
    """Return a weight for which each of the uneven channels matters."""
    return const(normal(*shape) / GAIN.reshape(-1, 1, 1))


def convolved(emit, y):
    return emit(op.nn.conv2d(y, balanced(5, 6, 1, 1)), "second")


def factors(network):
    return calibrate_graph(network, ITEMS).factors()


def test_uneven_channels_get_scales_of_their_own():
    found = factors(network(convolved))
    assert set(found) == {"uneven"}
    assert max(found["uneven"]) == 1.0
    assert np.argsort(found["uneven"])[[0, -1]].tolist() == [2, 1]


def test_the_network_is_then_as_exact_as_one_of_even_channels():
    net = network(convolved)
    calibration = calibrate_graph(net, ITEMS)
    plain = calibration.model_copy(
        update={"edges": {name: edge.model_copy(update={"factors": []})
                          for name, edge in calibration.edges.items()}}
    )  # fmt: skip
    import torch

    exact = Twin(net.module)(torch.from_numpy(ITEMS)).detach().numpy()

    def sqnr(calibration):
        got = simulate(quantize(net, calibration), ITEMS)[0]
        return 10 * np.log10((exact**2).sum() / ((got - exact) ** 2).sum())

    assert sqnr(calibration) > 35.0
    assert sqnr(plain) < 10.0


READERS = {
    "depthwise": lambda e, y: e(op.nn.conv2d(y, const(normal(6, 1, 3, 3)), groups=6), "second"),
    "pooled": lambda e, y: convolved(e, e(op.nn.max_pool2d(y, (2, 2)))),
    "joined": lambda e, y: e(
        op.nn.conv2d(
            e(op.concat([y, e(op.nn.conv2d(y, balanced(6, 6, 1, 1)), "other")], 1)),
            const(np.concatenate([normal(5, 6, 1, 1) / GAIN.reshape(-1, 1, 1)] * 2, 1)),
        ),
        "second",
    ),
    "dense": lambda e, y: e(
        op.matmul(
            e(op.reshape(e(op.nn.max_pool2d(y, (8, 8))), (y.ty.shape.values[0], 6))),
            const(normal(6, 3) / GAIN.reshape(-1, 1)),
        ),
        "second",
    ),
    "transposed": lambda e, y: e(
        op.nn.conv2d_transpose(y, const(normal(6, 5, 2, 2) / GAIN.reshape(-1, 1, 1, 1))), "second"
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_that_absorb_factors(name):
    net = network(READERS[name])
    assert "uneven" in factors(net)
    calibrated = quantize(net, calibrate_graph(net, ITEMS))
    assert not calls(calibrated.module, qop.TABLE)


NEVER = {
    "a table": lambda e, y: (convolved(e, y), e(op.sigmoid(y))),
    "channels that meet": lambda e, y: (
        convolved(e, y),
        e(op.nn.conv2d(e(op.max(y, [1], keepdims=True)), const(normal(2, 1, 1, 1))), "third"),
    ),
    "no layer": lambda e, y: e(op.nn.avg_pool2d(y, (2, 2))),
    "a weight of the model's own": lambda e, y: e(
        op.nn.conv2d(y, const(np.sign(normal(5, 6, 3, 3)))), "second"
    ),
    "a product": lambda e, y: (convolved(e, y), e(op.multiply(y, y))),
}


@pytest.mark.parametrize("name", NEVER)
def test_readers_that_take_one_scale(name):
    assert "uneven" not in factors(network(NEVER[name]))


def test_what_a_table_makes_has_one_scale():
    assert factors(network(convolved, producer=op.nn.silu)) == {}


def test_even_channels_keep_one_scale():
    def body(emit, x):
        y = emit(op.nn.relu(emit(op.nn.conv2d(x, const(normal(6, 4, 3, 3))), "first")), "even")
        return emit(op.nn.conv2d(y, const(normal(5, 6, 1, 1))), "second")

    n = tirx.Var("N", "int64")
    net = Graph(graph(body, (n, 4, 8, 8)), "L0", "even", ("x",), ("y",))
    assert factors(net) == {}


def test_channels_of_few_values_keep_a_reserve():
    net = network(convolved)
    few, many = (calibrate_graph(net, items).factors()["uneven"] for items in (ITEMS[:1], ITEMS))
    assert np.median(few) > 1.2 * np.median(many)


def test_the_record_keeps_factors(tmp_path):
    net = network(convolved)
    module = pipeline.annotate(pipeline.canonicalize(net.module))
    calibration = calibrate(module, ITEMS)
    calibration.save(tmp_path / "calibration.json")
    assert type(calibration).load(tmp_path / "calibration.json").factors() == calibration.factors()


LAST = {
    "dense": lambda e, y: e(op.matmul(y, const(normal(6, 3) / GAIN.reshape(-1, 1))), "second"),
    "moved to a convolution": lambda e, y: convolved(e, e(op.permute_dims(y, [0, 3, 1, 2]))),
}


@pytest.mark.parametrize("name", LAST)
@pytest.mark.parametrize("residual", [False, True])
def test_channels_may_come_last(name, residual):
    """Behind a dense layer of images, whose rows are as many as their channels."""

    def body(emit, x):
        y = emit(op.matmul(x, const(normal(4, 6) * GAIN)), "first")
        if residual:
            y = emit(op.add(y, emit(op.matmul(x, const(normal(4, 6, seed=1) * GAIN)), "other")))
        return LAST[name](emit, emit(op.nn.relu(y), "uneven"))

    net = Graph(graph(body, (tirx.Var("N", "int64"), 6, 5, 4)), "L0", "last", ("x",), ("y",))
    items = normal(16, 6, 5, 4)
    calibration = calibrate_graph(net, items)
    assert np.argsort(calibration.factors()["uneven"])[[0, -1]].tolist() == [2, 1]
    quantized = quantize(net, calibration)
    import torch

    exact = Twin(net.module)(torch.from_numpy(items)).detach().numpy()
    noise = simulate(quantized, items)[0] - exact
    if not residual:  # its other term is rounded before, with one scale
        assert 10 * np.log10((exact**2).sum() / (noise**2).sum()) > 35.0
