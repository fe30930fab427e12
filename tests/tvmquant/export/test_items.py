import numpy as np
import pytest
from tvm import relax, tirx

from tests.tvmquant.export.graphs import as_graph
from tests.tvmquant.twin.graphs import fake_quant, graph
from tvmquant.data import open_data
from tvmquant.errors import DataError, ModelError
from tvmquant.export.items import items_of, random_items


def network(*shape):
    """Return a graph whose input is quantized to -1 .. 4."""
    module = graph(shape, lambda builder, x: builder.emit(
        relax.op.nn.relu(builder.emit(fake_quant(x, "x", scale=5 / 255, zero_point=51)))
    ))  # fmt: skip
    return as_graph(module)


def test_random_items_lie_within_the_calibrated_range():
    batch = tirx.Var("N", "int64")
    items = [x for (x,) in random_items(network(batch, 3, 40), 3)]
    assert [x.shape for x in items] == [(1, 3, 40)] * 3
    assert all(x.dtype == np.float32 for x in items)
    together = np.concatenate(items)
    assert together.min() >= -1.001
    assert together.max() <= 4.001
    assert 1.0 < together.mean() < 2.0
    assert len({x.tobytes() for x in items}) == 3


def test_a_batch_that_is_fixed_is_whole():
    fixed = network(4, 3)
    assert [x.shape for (x,) in random_items(fixed)] == [(4, 3)] * 2
    data = open_data(np.arange(33, dtype=np.float32).reshape(11, 3), inputs=fixed.item_inputs())
    batches = [x for (x,) in items_of(data, fixed, 5)]
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(24).reshape(8, 3))
    with pytest.raises(DataError, match="3 items; the model takes batches of 4"):
        list(items_of(data.subset(limit=3), fixed))


def test_unknown_extents_are_refused():
    batch, width = tirx.Var("N", "int64"), tirx.Var("W", "int64")
    with pytest.raises(ModelError, match="import the model with input_shapes"):
        list(random_items(network(batch, width)))
