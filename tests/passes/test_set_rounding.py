import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import calls, const, graph, normal
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.passes import pipeline
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.set_rounding import SetRounding

SHAPE = (4, 4, 1, 1)


@pytest.fixture(scope="module")
def calibrated():
    def network(emit, x):
        return emit(relax.op.nn.conv2d(x, const(normal(*SHAPE))), "conv")

    module = AnnotateQuantization()(graph(network, (2, 4, 6, 6)))
    ids = [qop.attributes(call) for call in calls(module, qop.FAKE_QUANT)]
    ranges = {a["id"]: (-1.0, 2.0) for a in ids if a["role"] != qop.WEIGHT}
    return pipeline.apply_calibration(module, ranges)


def _parts(module, role):
    (call,) = [c for c in calls(module, qop.FAKE_QUANT) if qop.attributes(c)["role"] == role]
    return call, qop.attributes(call)["id"]


def test_a_weight_is_whole_numbers_of_its_steps(calibrated):
    call, name = _parts(calibrated, qop.WEIGHT)
    integers = np.random.default_rng(0).integers(-127, 128, SHAPE).astype(np.int8)
    after = SetRounding({name: integers}, {})(calibrated)
    relax.analysis.well_formed(after)
    found, _ = _parts(after, qop.WEIGHT)
    scale = qop.constant_array(found.args[1]).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(scale, qop.constant_array(call.args[1]).reshape(-1, 1, 1, 1))
    weight = qop.constant_array(found.args[0])
    np.testing.assert_array_equal(weight, integers.astype(np.float32) * scale)
    assert qop.attributes(found) == qop.attributes(call)


def test_an_activation_gets_another_step(calibrated):
    _, name = _parts(calibrated, qop.ACTIVATION)
    found, _ = _parts(SetRounding({}, {name: 0.25})(calibrated), qop.ACTIVATION)
    np.testing.assert_array_equal(qop.constant_array(found.args[1]), np.float32([0.25]))


def test_nothing_to_set_leaves_a_module_as_it_is(calibrated):
    tvm.ir.assert_structural_equal(SetRounding({}, {})(calibrated), calibrated)


def test_what_is_of_another_model_is_refused(calibrated):
    _, name = _parts(calibrated, qop.WEIGHT)
    with pytest.raises(
        QuantizationError, match=r"has shape \(2,\), and the model's \(4, 4, 1, 1\)"
    ):
        SetRounding({name: np.zeros(2, np.int8)}, {})(calibrated)
    with pytest.raises(QuantizationError, match="rounds nothing called 'other'"):
        SetRounding({}, {"other": 1.0})(calibrated)
