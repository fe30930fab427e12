"""The kernels of recurrent layers equal the simulator's definition."""

import numpy as np
import pytest

from tests.schedules import kernel_testing as kt
from tvmquant.machine import Machine
from tvmquant.schedules import recurrent_f32
from tvmquant.simulator.calls import OpCall
from tvmquant.simulator.recurrent import recurrent

KINDS = {
    "lstm": {"kind": "LSTM"},
    "lstm_cell": {"kind": "LSTM", "state": "cell", "reverse": True},
    "gru": {"kind": "GRU", "reset_first": True},
    "gru_behind": {"kind": "GRU", "reverse": True},
    "rnn": {"kind": "RNN"},
    "rnn_relu": {"kind": "RNN", "activation": "Relu"},
}
# steps, batch, size, initial states: blocks that overlap, one element, whole vectors, and steps
# that threads share
SIZES = [(5, 2, 19, 2), (1, 1, 1, 1), (3, 3, 64, 1), (3, 1, 203, 1)]


@pytest.mark.parametrize("target", [kt.NATIVE, "haswell"])
@pytest.mark.parametrize("case", KINDS)
def test_equals_the_simulator(case, target):
    attrs = {"reverse": False, "reset_first": False, "activation": "Tanh", "state": "hidden"}
    attrs |= KINDS[case]
    rng = np.random.default_rng(2)
    for steps, batch, size, states in SIZES:
        spec = recurrent_f32.RecurrentSpec(steps, batch, size, states=states, **attrs)
        width = {"LSTM": 4, "GRU": 3, "RNN": 1}[attrs["kind"]] * size
        shapes = [(steps, batch, width), (size, width), (width,), *2 * [(states, size)]]
        inputs = [rng.standard_normal(shape).astype(np.float32) / 2 for shape in shapes]
        inputs[1] /= max(1.0, size**0.5 / 4)  # or the state of a RNN with ReLU grows with each step
        chosen = kt.make_target(target)
        found = kt.run(recurrent_f32.kernel(spec, Machine.of(chosen, 2)), chosen, inputs)
        expected = recurrent(OpCall(case, inputs, attrs))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=4e-6)
