"""A layer whose weight is a sum of signs becomes one layer for each."""

import numpy as np
import torch
from tvm import relax

from tvmquant.formats import INT8
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.imported_quantizers import imported_sign
from tvmquant.ir.rewriter import bindings_of, with_span
from tvmquant.passes.insert_binarization import few_valued_weight
from tvmquant.passes.split_weights import SplitWeights
from tvmquant.twin import Twin


def _module(weight):
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4, 5, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            signs = builder.emit(imported_sign(x, 1.0, name="signs"))
            held = builder.emit(few_valued_weight(weight, INT8.name, axis=0, name="conv"))
            layer = builder.emit(with_span(relax.op.nn.conv2d(signs, held), "conv"))
            result = builder.emit_output(layer)
        builder.emit_func_output(result)
    return builder.finalize()


def test_terms_add_up_to_the_weight() -> None:
    random = np.random.default_rng(0)
    terms = [a * random.choice([-1.0, 1.0], (3, 4, 3, 3)).astype(np.float32) for a in (0.5, 0.25)]
    split = SplitWeights({"conv": terms})(_module(sum(terms)))
    layers = [v for _, v in bindings_of(split["main"]) if qop.is_call(v, "relax.nn.conv2d")]
    assert len(layers) == 2
    x = torch.from_numpy(random.normal(size=(2, 4, 5, 5)).astype(np.float32))
    signs = torch.where(x >= 0, 1.0, -1.0)
    wanted = torch.nn.functional.conv2d(signs, torch.from_numpy(sum(terms)))
    with torch.no_grad():
        np.testing.assert_allclose(Twin(split)(x), wanted, rtol=1e-6, atol=1e-6)


def test_other_layers_stay() -> None:
    module = _module(np.ones((3, 4, 3, 3), np.float32))
    split = SplitWeights({"another": []})(module)
    assert str(split.script(show_meta=False)) == str(module.script(show_meta=False))
