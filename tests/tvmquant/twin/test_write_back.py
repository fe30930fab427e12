"""Quantizers that are trained or replaced, and what becomes of them in the graph."""

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from tests.passes.graphs import calls, quantize
from tests.passes.test_insert_requantize import CASES, inputs_of, network
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.simulator import simulate
from tvmquant.twin import FakeQuantize, Twin


@pytest.fixture(scope="module")
def levels():
    return quantize(network(CASES["residual"]), inputs_of(CASES["residual"]))


@pytest.fixture
def x():
    return torch.from_numpy(inputs_of(CASES["residual"])[0])


def test_what_did_not_change_comes_back_as_it_was(levels):
    tvm.ir.assert_structural_equal(
        Twin(levels.calibrated).write_back(), levels.calibrated, map_free_vars=True
    )


def test_training_moves_weights_biases_and_scales_of_the_graph(levels, x):
    twin = Twin(levels.calibrated, mode="quantized")
    scales = {name: q.learn_scale() for name, q in twin.quantizers.items()}
    before = {name: scale.detach().clone() for name, scale in scales.items()}
    assert {f"_quantizers.{i}.scale" for i in range(len(scales))} <= set(
        dict(twin.named_parameters())
    )
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-3)
    twin(x).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(scales[name].detach(), before[name]) for name in scales)
    written = twin.write_back()
    again = Twin(written, mode="quantized")
    with torch.no_grad():
        torch.testing.assert_close(again(x), twin(x), rtol=0, atol=0)
    stored = {
        qop.attributes(c)["id"]: qop.constant_array(c.args[1])
        for c in calls(written, qop.FAKE_QUANT)
    }
    for name, scale in scales.items():
        np.testing.assert_array_equal(stored[name], scale.detach().numpy())
    relax.analysis.well_formed(written)


def test_the_exact_mode_rounds_what_was_trained(levels, x):
    twin = Twin(levels.calibrated, mode="exact")
    before = twin(x)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(twin(x), before, rtol=0, atol=0)
    twin.mode = "exact"
    (expected,) = simulate(InsertRequantize()(twin.write_back()), x.numpy())
    np.testing.assert_array_equal(twin(x).numpy(), expected)
    assert not np.array_equal(expected, before.numpy())
    twin.mode = "float"
    assert twin(x).requires_grad


def test_a_quantizer_can_be_replaced(levels, x):
    twin = Twin(levels.calibrated, mode="quantized")
    edge = next(e for e in twin.edges if e.role == "weight")
    old = twin.quantizers[edge.id]

    class Coarser(FakeQuantize):
        """Rounds to every other level."""

        def forward(self, x):
            return 2.0 * super().forward(x / 2.0)

    new = Coarser(old.scale, old.zero_point, -3, 3, axis=edge.axis)
    twin.replace_quantizer(edge.id, new)
    assert twin.quantizers[edge.id] is new
    assert not torch.equal(twin(x), Twin(levels.calibrated, mode="quantized")(x))
    (call,) = (
        c for c in calls(twin.write_back(), qop.FAKE_QUANT) if qop.attributes(c)["id"] == edge.id
    )
    assert (qop.attributes(call)["qmin"], qop.attributes(call)["qmax"]) == (-3, 3)


def test_a_quantizer_without_a_scale_cannot_be_written_back(levels, x):
    twin = Twin(levels.calibrated, mode="quantized")
    twin.replace_quantizer(twin.edges[0].id, torch.nn.Identity())
    twin(x)
    with pytest.raises(QuantizationError, match=rf"'{twin.edges[0].id}' is a Identity without"):
        twin.write_back()


def test_an_edge_that_is_not_there(levels):
    with pytest.raises(QuantizationError, match=r"no edge 'nowhere'; expected one of x0"):
        Twin(levels.calibrated).replace_quantizer("nowhere", torch.nn.Identity())


def test_a_scale_is_learned_from_a_calibrated_one(levels):
    quantizer = next(iter(Twin(levels.annotated).quantizers.values()))
    with pytest.raises(QuantizationError, match="calibrate first"):
        quantizer.learn_scale()


def test_the_state_is_saved_and_loaded(levels, x):
    twin, other = (Twin(levels.calibrated, mode="quantized") for _ in range(2))
    with torch.no_grad():
        for quantizer in twin.quantizers.values():
            quantizer.scale.mul_(1.5)
    other.load_state_dict(twin.state_dict())
    torch.testing.assert_close(other(x), twin(x), rtol=0, atol=0)
