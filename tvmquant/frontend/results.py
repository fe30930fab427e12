"""What an imported model returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from tvm import relax

from tvmquant.errors import ModelError, UnsupportedModelError
from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import Batch, Shape, UnsupportedNodeError, is_symbolic, show
from tvmquant.frontend.float_types import as_float32
from tvmquant.frontend.prepare import Prepared
from tvmquant.frontend.quantized_tensor import QuantizedTensor
from tvmquant.frontend.ranged_tensor import RangedTensor, RangeParameter


def returned(context: Context, output: onnx.ValueInfoProto) -> relax.Expr:
    """Return the value of an output.

    Raises
    ------
    ModelError
        If it has none, or is the batch size.
    UnsupportedModelError
        If it has no elements, or is of a type that no library returns.
    """
    value = context.values[output.name]
    if value is None:
        raise ModelError(f"output {output.name!r} has no value; the file is damaged")
    if is_symbolic(value):
        raise ModelError(f"output {output.name!r} is the batch size; remove it from the model")
    try:
        if isinstance(value, np.ndarray):
            result = context.embed(as_float32(value))
        else:
            result = value
            if isinstance(value, QuantizedTensor | RangedTensor):
                result = context.emit(value.integers())
            if isinstance(value, RangeParameter):
                result = context.emit(value.value())
        if 0 in context.shape(result):
            raise UnsupportedNodeError(f"it has shape {show(context.shape(result))}")
        return result
    except UnsupportedNodeError as error:
        raise UnsupportedModelError(f"output {output.name!r} cannot be returned: {error}") from None


def check_batches(model: Prepared, shapes: Sequence[Shape]) -> None:
    """Reject the assumption of a symbolic batch if an output does not carry it in front.

    Raises
    ------
    UnsupportedModelError
    """
    for output, shape in zip(model.outputs, shapes, strict=True):
        if not shape or shape[0] != Batch() or any(isinstance(dim, Batch) for dim in shape[1:]):
            raise UnsupportedModelError(f"output {output.name!r} does not begin with the batch")
