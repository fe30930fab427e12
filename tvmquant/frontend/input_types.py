"""Shapes and types of a model's inputs, with what the user binds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import onnx

from tvmquant.errors import ModelError
from tvmquant.frontend.dimensions import MAX_ELEMENTS
from tvmquant.frontend.prepare import Prepared

_GIVEN = "input_shapes (--input-shape)"
# Of one dimension: TVM computes with 32-bit indices.
MAX_EXTENT = 2**31 - 1

_DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float32",
    onnx.TensorProto.BFLOAT16: "float32",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.UINT16: "uint16",
    onnx.TensorProto.UINT32: "uint32",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.BOOL: "bool",
}


# Of the tensors of a graph.
TYPES = tuple(dict.fromkeys(_DTYPES.values()))

BatchKind: TypeAlias = Literal["symbolic", "fixed at 1", "fixed", "rebound"]


@dataclass(frozen=True)
class InputType:
    """An input of the graph.

    Parameters
    ----------
    name : str
    shape : tuple of int
        The first number is meaningless where the batch is symbolic.
    batch : str
        Whether the first dimension is left open, is 1 in the file, is some other number, or is a
        number in the file for which the user gives another.
    dtype : str
        ``"float32"`` for floating-point numbers of any width, else an integer type or ``"bool"``.
    declared_batch : int, optional
        The first dimension in the file, where that is a number.
    """

    name: str
    shape: tuple[int, ...]
    batch: BatchKind
    dtype: str = "float32"
    declared_batch: int | None = None


def read_inputs(
    model: Prepared, input_shapes: Mapping[str, Sequence[int | None]]
) -> list[InputType]:
    """Return the inputs of a model with all dimensions but the batch known.

    Raises
    ------
    ModelError
        If a dimension other than the first is left open, is zero, or contradicts ``input_shapes``;
        if that gives another first dimension than the file's for some inputs only;
        if an input is of a type that no library takes; if ``input_shapes`` names no input.
    """
    names = [value.name for value in model.inputs]
    for name in input_shapes:
        if name not in names:
            raise ModelError(
                f"{_GIVEN} names {name!r}, but the inputs of model {model.name!r} are "
                f"{', '.join(names)}"
            )
    inputs = [_read(model, value, input_shapes.get(value.name)) for value in model.inputs]
    _check_rebound(model, inputs)
    return inputs


def _check_rebound(model: Prepared, inputs: Sequence[InputType]) -> None:
    """Reject another batch than the file's unless all inputs get the same one."""
    rebound = [item for item in inputs if item.batch == "rebound"]
    alike = {(item.batch, item.declared_batch, item.shape[:1]) for item in inputs}
    if rebound and len(alike) > 1:
        first = rebound[0]
        raise ModelError(
            f"model {model.name!r}: {_GIVEN} changes the batch of input {first.name!r} from "
            f"{first.declared_batch} to {first.shape[0]}; give the same batch for all inputs: "
            + ", ".join(f"{item.name!r} {item.shape}" for item in inputs)
        )


def _read(
    model: Prepared, value: onnx.ValueInfoProto, given: Sequence[int | None] | None
) -> InputType:
    label = f"model {model.name!r}: input {value.name!r}"
    tensor = value.type.tensor_type
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        found = str(kind).removesuffix("_type").replace("_", " ")
        raise ModelError(
            f"{label} is of the kind {found}, expected a tensor; export the model so that it takes "
            "tensors only"
        )
    if tensor.elem_type not in _DTYPES:
        found = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        known = ", ".join(TYPES)
        raise ModelError(
            f"{label} has type {found}, expected one of {known}; export the model so that the "
            "conversion happens outside of it"
        )
    declared = _declared(value)
    if declared is None:
        if given is None:
            raise ModelError(f"{label} has no shape; {_how_to_bind(value.name, 4)}")
        declared = [""] * len(given)
    if given is not None and len(given) != len(declared):
        raise ModelError(
            f"{label} has {len(declared)} dimensions, {_GIVEN} gives {len(given)}: {given}"
        )
    dims = [
        _bind(label, value.name, axis, dim, None if given is None else given[axis], len(declared))
        for axis, dim in enumerate(declared)
    ]
    if math.prod(dims[1:]) > MAX_ELEMENTS or math.prod(dims) > MAX_EXTENT:
        raise ModelError(
            f"{label} has shape {tuple(dims)}, expected at most {MAX_ELEMENTS} elements for one "
            "item"
        )
    open_batch = bool(declared) and not isinstance(declared[0], int)
    if open_batch and (given is None or given[0] is None):
        batch: BatchKind = "symbolic"
    elif bool(declared) and declared[0] == 1 and (given is None or given[0] is None):
        batch = "fixed at 1"
    elif bool(declared) and not open_batch and dims[0] != declared[0]:
        batch = "rebound"
    else:
        batch = "fixed"
    in_file = declared[0] if declared and isinstance(declared[0], int) else None
    return InputType(value.name, tuple(dims), batch, _DTYPES[tensor.elem_type], in_file)


def _declared(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Return dimensions as numbers, or as the name that stands for an open one."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    dims: list[int | str] = []
    for axis, dim in enumerate(tensor.shape.dim):
        # exporters write -1 for an open dimension, and have written 0 for an open batch
        is_open = not dim.HasField("dim_value") or dim.dim_value < (1 if axis == 0 else 0)
        dims.append(str(dim.dim_param) if is_open else int(dim.dim_value))
    return dims


def _bind(
    label: str, name: str, axis: int, declared: int | str, given: int | None, rank: int
) -> int:
    if declared == 0:
        raise ModelError(f"{label} has dimension {axis} = 0, expected a number > 0")
    if isinstance(declared, int) and given is None:
        return declared
    if given is None:
        if axis == 0:
            return 1
        called = f" ({declared!r})" if declared else ""
        raise ModelError(
            f"{label}: dimension {axis}{called} is left open; {_how_to_bind(name, rank)}"
        )
    if not 0 < given <= MAX_EXTENT:
        raise ModelError(
            f"{label}: {_GIVEN} gives dimension {axis} = {given}, expected 1 to {MAX_EXTENT}"
        )
    return int(given)


def _how_to_bind(name: str, rank: int) -> str:
    example = (None, 3, 224, 224) if rank == 4 else (None, *([64] * (rank - 1)))
    option = ",".join("?" if extent is None else str(extent) for extent in example)
    return (
        f"give its shape, e.g. input_shapes={{{name!r}: {example}}}, on the command line "
        f"--input-shape {name}={option}"
    )
