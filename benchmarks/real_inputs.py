"""What networks of the user are fed with: the shapes of inputs, and items of two kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_data import Recipe
from tvmquant.cli.options import parse_input_shapes
from tvmquant.errors import DataError

if TYPE_CHECKING:
    import onnx

Feeds = dict[str, NDArray[Any]]
Shape = tuple[int | None, ...]

# of the inputs, every third is evaluated and the others calibrate
HELD_OUT = 3


def prepare(
    path: Path, recipe: Recipe, scratch: Path, folder: Path, items: int
) -> tuple[Path, dict[str, Shape], Feeds, Feeds, int]:
    """Read what a recipe feeds a network with.

    Parameters
    ----------
    path : Path
        The ONNX file.
    recipe : Recipe
    scratch : Path
        Where a copy of the file with the recipe's input shapes goes, if it has any.
    folder : Path
        Where files of data are looked for.
    items : int
        Inputs at most; every third is evaluated, the others calibrate.

    Returns
    -------
    Path
        The file with the shapes of the recipe: that copy, or `path`.
    dict
        The shapes that the recipe asks for, as of `tvmquant.load_onnx`.
    dict, dict
        Items of every input to calibrate with, and to evaluate.
    int
        Items of a run: what the file or the recipe fixes, or 1.

    Raises
    ------
    DataError
        When the recipe names an input that the file lacks, or its data do not fit.
    """
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    asked = parse_input_shapes((recipe.input_shape or "").split())
    loaded = onnx.load(str(path))
    constants = {tensor.name for tensor in loaded.graph.initializer}
    inputs = [value for value in loaded.graph.input if value.name not in constants]
    if unknown := set(asked) - {value.name for value in inputs}:
        raise DataError(f"{path.name} has no input {', '.join(unknown)}; it has " + _names(inputs))
    shapes = {value.name: asked.get(value.name, _shape(value)) for value in inputs}
    batch = max(1, max((shape[0] or 1) for shape in shapes.values() if shape))
    if len(inputs) == 1:
        ((name, shape),) = shapes.items()
        found = {name: recipe.items(shape[1:], folder, items)}
    else:
        found = _several(recipe, folder, inputs, items)
    for value in inputs:
        dtype = tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found[value.name] = found[value.name].astype(dtype)
    shaped = path
    if asked:
        shaped = scratch / "shaped.onnx"
        onnx.save(_with_shapes(loaded, inputs, shapes), str(shaped))
    calibration, evaluation = split(found, batch)
    return shaped, asked, calibration, evaluation, batch


def _several(recipe: Recipe, folder: Path, inputs: Sequence[Any], items: int) -> Feeds:
    """Read a .npz with an array for every input."""
    path = Path(recipe.data) if Path(recipe.data).exists() else folder / recipe.data
    if path.suffix != ".npz" or not path.is_file():
        raise DataError(
            f"the model has several inputs; expected a .npz that holds {_names(inputs)}"
        )
    with np.load(path) as file:
        if missing := [value.name for value in inputs if value.name not in file]:
            raise DataError(f"{path} lacks {', '.join(missing)}")
        return {value.name: file[value.name][:items] for value in inputs}


def _names(inputs: Sequence[Any]) -> str:
    return ", ".join(value.name for value in inputs)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)


def _with_shapes(
    model: onnx.ModelProto, inputs: Sequence[Any], shapes: Mapping[str, Shape]
) -> onnx.ModelProto:
    """Let a model declare the shapes of its inputs, and no others that could contradict them."""
    for value in inputs:
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for extent in shapes[value.name]:
            dim = shape.dim.add()
            if extent is None:
                dim.dim_param = "N"
            else:
                dim.dim_value = extent
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return model


def split(feeds: Feeds, batch: int) -> tuple[Feeds, Feeds]:
    """Hold out every third batch of items; of fewer than three, all serve both purposes."""
    whole = min(len(array) for array in feeds.values()) // batch
    if not whole:
        raise DataError(f"the model takes {batch} items at once, and the data hold fewer")
    index = np.arange(whole * batch)
    held_out = index // batch % HELD_OUT == HELD_OUT - 1
    if whole < HELD_OUT:
        held_out[:] = True
    calibrating = index[~held_out] if whole >= HELD_OUT else index
    return (
        {name: array[calibrating] for name, array in feeds.items()},
        {name: array[index[held_out]] for name, array in feeds.items()},
    )
