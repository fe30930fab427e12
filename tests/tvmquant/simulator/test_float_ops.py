import numpy as np
import pytest
import tvm
from tvm import relax

from tvmquant.simulator import simulate

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) * 3
CHANNELS = relax.const(np.float32([0.5, 0.3, 2]))

OPERATORS = [
    lambda x: relax.op.add(x, x),
    lambda x: relax.op.subtract(x, relax.const(np.float32(2))),
    lambda x: relax.op.multiply(x, relax.const(np.arange(4, dtype=np.float32))),
    lambda x: relax.op.divide(x, relax.const(np.float32(3))),
    lambda x: relax.op.power(x, relax.const(np.float32(2))),
    lambda x: relax.op.maximum(x, relax.const(np.float32(0.5))),
    lambda x: relax.op.minimum(x, relax.const(np.float32(0.5))),
    lambda x: relax.op.clip(x, 0, 6),
    relax.op.negative,
    relax.op.abs,
    relax.op.exp,
    lambda x: relax.op.log(relax.const(X**2)),
    lambda x: relax.op.sqrt(relax.const(X**2)),
    lambda x: relax.op.rsqrt(relax.const(X**2)),
    relax.op.tanh,
    relax.op.erf,
    relax.op.sigmoid,
    relax.op.nn.relu,
    relax.op.nn.silu,
    relax.op.nn.gelu,
    relax.op.nn.gelu_tanh,
    relax.op.nn.leakyrelu,
    relax.op.nn.softmax,
    lambda x: relax.op.nn.softmax(x, axis=1),
    lambda x: relax.op.matmul(x, relax.const(X[0].T.copy())),
    lambda x: relax.op.mean(x, [1, 2], keepdims=True),
    lambda x: relax.op.sum(x, [2]),
    lambda x: relax.op.astype(x, "int32"),
    relax.op.sin,
    relax.op.cos,
    relax.op.sign,
    relax.op.floor,
    relax.op.ceil,
    relax.op.round,
    lambda x: relax.op.nn.prelu(x, relax.const(np.float32([0.1, -2, 3])), 1),
    lambda x: relax.op.nn.log_softmax(x, 1),
    lambda x: relax.op.nn.layer_norm(x, CHANNELS, CHANNELS, [1]),
    lambda x: relax.op.min(x, [1], keepdims=True),
    lambda x: relax.op.max(x, [1, 2]),
    lambda x: relax.op.argmax(x, 1),
    lambda x: relax.op.argmin(x, 2, keepdims=True),
    lambda x: relax.op.tile(x, [1, 2, 3]),
    lambda x: relax.op.floor_mod(x, relax.const(np.float32(-0.7))),
    lambda x: relax.op.prod(x, [1], keepdims=True),
    lambda x: relax.op.flip(x, 1),
    lambda x: relax.op.isinf(relax.const(np.float32([np.inf, 1, -np.inf, np.nan]))),
    lambda x: relax.op.isnan(relax.const(np.float32([np.inf, 1, -np.inf, np.nan]))),
    lambda x: relax.op.full([2, 3], relax.const(np.float32(0.5))),
]


def test_float_operators_follow_tvm(build_graph):
    def everything(builder, x):
        return relax.Tuple([builder.emit(make(x)) for make in OPERATORS])

    module = build_graph([((3, 4), "float32")], everything)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    expected = machine["main"](tvm.runtime.tensor(X))
    for result, reference in zip(simulate(module, X), expected, strict=True):
        assert str(result.dtype) == str(reference.dtype)
        np.testing.assert_allclose(result, reference.numpy(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_saturated_activations_stay_finite(build_graph, extreme):
    module = build_graph(
        [((1,), "float32")],
        lambda b, x: relax.Tuple(
            [b.emit(relax.op.sigmoid(x)), b.emit(relax.op.nn.softmax(x)), b.emit(relax.op.tanh(x))]
        ),
    )
    for result in simulate(module, np.array([[extreme]], np.float32)):
        assert np.all(np.isfinite(result))
