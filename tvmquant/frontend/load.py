"""The door to the import: a file is judged before TVM is loaded, which takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tvmquant.errors import UnsupportedModelError
from tvmquant.frontend.dialects import rewrite_model
from tvmquant.frontend.input_types import read_inputs
from tvmquant.frontend.prepare import Source, prepare
from tvmquant.frontend.support import find_unsupported, raise_unsupported

if TYPE_CHECKING:
    from tvmquant.graph import Graph


def load_onnx(
    source: Source,
    *,
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    name: str | None = None,
    requantize: bool = False,
) -> Graph:
    """Import an ONNX model as a float graph.

    A model that is quantized already (QDQ) brings its scales: its weights keep their integers, its
    tensors their scales and zero points, as fake_quants.

    Parameters
    ----------
    source : path or onnx.ModelProto
        The model. Data outside the file must lie in the file's own folder.
    input_shapes : mapping of str to shape, optional
        Shapes of inputs whose dimensions the model leaves open, None standing for the batch, e.g.
        ``{"x": (None, 3, 224, 224)}``. Where the model fixes a dimension, another number takes its
        place, unless the model makes use of it.
    name : str, optional
        Name of the graph, by default the stem of the file.
    requantize : bool
        Leave the model's own scales out, to quantize it anew: its weights are then floats.

    Returns
    -------
    Graph
        Level L0. The batch is symbolic if the model leaves it open, or fixes it at 1 without
        making use of that; otherwise it is the model's number. Floating-point numbers of any width
        become float32.

    Raises
    ------
    ModelError
        If the file is damaged, holds NaN or infinite weights, or leaves a dimension open.
    UnsupportedModelError
        If nodes cannot be imported; the message lists all whose operators or attributes are not
        supported, or, where there are none, all that do not fit the shapes they meet. If the batch
        cannot be another than the file's.

    Examples
    --------
    >>> graph = load_onnx("resnet50.onnx")  # doctest: +SKIP
    >>> graph.inputs  # doctest: +SKIP
    [('image', (None, 3, 224, 224), 'float32')]
    """
    model, refused = rewrite_model(prepare(source, name))
    ranks = {constant: array.ndim for constant, array in model.constants.items()}
    raise_unsupported(model.name, find_unsupported(model.name, model.nodes, ranks, refused))
    inputs = read_inputs(model, input_shapes or {})
    from tvmquant.frontend.onnx_import import import_model, import_rebound

    if all(item.batch == "fixed at 1" for item in inputs):
        try:
            return import_model(model, inputs, assumed_batch=1, requantize=requantize)
        except UnsupportedModelError:
            pass  # the model makes use of the batch being 1
    if any(item.batch == "rebound" for item in inputs):
        return import_rebound(model, inputs, requantize=requantize)
    return import_model(model, inputs, requantize=requantize)
