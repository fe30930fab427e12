import numpy as np
import pytest
from tvm import relax

from tests.passes.graphs import calls, distance, quantize, run_twin
from tests.passes.test_insert_requantize import CASES, inputs_of, network
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.passes import pipeline
from tvmquant.passes.annotate_quantization import AnnotateQuantization
from tvmquant.passes.fold_batch_norm import BATCH_NORM, FoldBatchNorm
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.simulator import simulate

NAMES = [
    "conv, norm, relu6",
    "downsampling residual",
    "transposed convolution in groups",
    "symbolic batch",
]


def edges(module):
    """Return the ids of what is quantized behind or before layers."""
    attrs = [qop.attributes(c) for c in calls(module, qop.FAKE_QUANT)]
    return sorted(a["id"] for a in attrs)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tensors_are_quantized_as_in_the_folded_graph(name):
    module = network(CASES[name])
    kept = pipeline.canonicalize(module, fold_batch_norm=False)
    assert calls(kept, BATCH_NORM)
    assert edges(AnnotateQuantization()(kept)) == edges(
        AnnotateQuantization()(pipeline.canonicalize(module))
    )


@pytest.mark.parametrize("name", [*NAMES, "dense block"])
def test_a_graph_with_normalizations_is_a_network_that_ships(name):
    case = CASES[name]
    inputs = inputs_of(case)
    levels = quantize(network(case), inputs, fold_batch_norm=False)
    assert calls(levels.calibrated, BATCH_NORM)
    assert not calls(levels.integer, BATCH_NORM)
    integers = simulate(levels.integer, *inputs)
    expected = run_twin(levels.calibrated, inputs, mode="quantized")
    assert distance(integers, expected) <= 1.5
    for found, wanted in zip(
        run_twin(levels.calibrated, inputs, mode="exact"), integers, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_pass_folds_later_and_changes_no_integer_of_a_weight(name):
    case = CASES[name]
    inputs = inputs_of(case)
    levels = quantize(network(case), inputs, fold_batch_norm=False)
    folded = FoldBatchNorm()(levels.calibrated)
    relax.analysis.well_formed(folded)
    assert not calls(folded, BATCH_NORM)
    after = InsertRequantize()(folded)

    def weights(module):
        values = (value for _, value in bindings_of(module["main"]))
        return [qop.constant_array(v.args[1]) for v in values if qop.is_call(v, *qop.CONTRACTIONS)]

    for found, wanted in zip(weights(after), weights(levels.integer), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert distance(simulate(after, *inputs), simulate(levels.integer, *inputs)) <= 1.0
