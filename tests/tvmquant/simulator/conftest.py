import numpy as np
import pytest
from tvm import relax, tirx

from tvmquant.simulator import simulate


def _build(shapes, make):
    """Build ``main`` of parameters (n, *shape) that returns the expression ``make`` gives."""
    batch = tirx.Var("n", "int64")
    params = [
        relax.Var(f"x{i}", relax.TensorType([batch, *shape], dtype))
        for i, (shape, dtype) in enumerate(shapes)
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", params):
        with builder.dataflow():
            result = builder.emit_output(make(builder, *params))
        builder.emit_func_output(result)
    return builder.get()


def _run(make, *arrays):
    """Simulate one expression of the arrays and compare its inferred type with the result."""
    module = _build([(a.shape[1:], str(a.dtype)) for a in arrays], make)
    results = simulate(module, *arrays)
    types = module["main"].ret_ty
    types = types.fields if isinstance(types, relax.TupleType) else [types]
    for result, inferred in zip(results, types, strict=True):
        assert isinstance(result, np.ndarray)
        assert str(result.dtype) == str(inferred.dtype.dtype)
        shape = [result.shape[0], *(int(v) for v in inferred.shape.values[1:])]
        assert list(result.shape) == shape
    return results


@pytest.fixture(scope="session")
def build_graph():
    return _build


@pytest.fixture(scope="session")
def run_graph():
    return _run
