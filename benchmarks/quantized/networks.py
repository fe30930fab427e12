"""The float networks that files are quantized from, with what calibrates them and what they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import models as random_networks
from benchmarks.accuracy import TASKS, Task, check_files, open_images
from benchmarks.latency import check_model
from benchmarks.real_data import Recipe, find_recipe
from benchmarks.real_inputs import Feeds, prepare
from tvmquant.errors import DataError

# enough for ranges such as users have them
CALIBRATION_ITEMS = 64
# of random networks, whose activations resemble each other
SYNTHETIC_ITEMS = 16


@dataclasses.dataclass(frozen=True)
class Network:
    """A float network.

    Attributes
    ----------
    name : str
        In the rows.
    onnx : Path
        The file, with the shapes that its recipe asks for.
    calibration, evaluation : dict of str to array
        Items of every input, a multiple of `batch`.
    batch : int
        Items of a run: what the file fixes, or 1.
    task : Task, optional
        Whose images have labels.
    """

    name: str
    onnx: Path
    calibration: Feeds
    evaluation: Feeds
    batch: int = 1
    task: Task | None = None

    def runs(self, feeds: Feeds) -> list[Feeds]:
        """Return items batch by batch."""
        count = len(next(iter(feeds.values())))
        return [
            {name: array[i : i + self.batch] for name, array in feeds.items()}
            for i in range(0, count, self.batch)
        ]


def check_network(name: str, data: Path, recipes: Mapping[str, Recipe]) -> None:
    """Raise `DataError` where `open_network` could not find a network or its data."""
    path = Path(name)
    if path.suffix != ".onnx":
        check_model(name, data)
        if name in TASKS:
            check_files(data, TASKS[name])
    elif not path.is_file():
        raise DataError(f"--models: {path} is not there")
    elif find_recipe(recipes, path) is None:
        raise DataError(
            f"nothing says what to feed {path.name} with; pass --table with a section "
            f'["{path.name}"] (see benchmarks/real.toml)'
        )


def open_network(
    name: str,
    *,
    data: Path,
    folder: Path,
    items: int,
    recipes: Mapping[str, Recipe],
    image_size: int | None = None,
) -> Network:
    """Return a network with its items.

    Parameters
    ----------
    name : str
        Of a trained network, of a random one, or an ONNX file with a recipe.
    data : Path
        Folder with ``models/`` and ``data/``.
    folder : Path
        Where exported and reshaped files are kept.
    items : int
        To evaluate.
    recipes : mapping of str to Recipe
        Of files.
    image_size : int, optional
        Of random networks.

    Raises
    ------
    DataError
        When its data do not fit.
    """
    path = Path(name)
    if path.suffix == ".onnx":
        recipe = find_recipe(recipes, path)
        assert recipe is not None
        shaped, _, calibration, evaluation, batch = prepare(
            path, recipe, folder, data / "data", max(3 * items, CALIBRATION_ITEMS)
        )
        if shaped != path:
            shaped = shaped.rename(folder / f"{path.stem}-float.onnx")
        few = {key: array[: items * batch] for key, array in evaluation.items()}
        return Network(path.stem, shaped, calibration, few, batch)
    if name in TASKS:
        task = TASKS[name]
        onnx = data / "models" / task.model
        calibration = _spread(data, task, task.calibration, CALIBRATION_ITEMS)
        evaluation = _spread(data, task, task.evaluation, items)
        feeds = ({_only_input(onnx): array} for array in (calibration, evaluation))
        return Network(name, onnx, *feeds, task=task)
    shown = name if image_size is None else f"{name}-{image_size}"
    onnx = folder / f"{shown}-float.onnx"
    if not onnx.is_file():
        random_networks.export(name, onnx, image_size=image_size)
    shape = random_networks.input_shape(name, image_size)
    images = random_networks.synthetic_images(SYNTHETIC_ITEMS + items, shape, seed=0)
    feeds = ({_only_input(onnx): a} for a in (images[:SYNTHETIC_ITEMS], images[SYNTHETIC_ITEMS:]))
    return Network(shown, onnx, *feeds)


def _spread(data: Path, task: Task, images: tuple[str, str | None], count: int) -> NDArray[Any]:
    """Return images of a task, spread evenly over all."""
    found = open_images(data, task, images, 16)
    found = found.subset(step=max(1, len(found) // count), limit=count)
    return np.concatenate([batch for batch, _ in found]).astype(np.float32)


def _only_input(path: Path) -> str:
    import onnx

    return str(onnx.load(str(path)).graph.input[0].name)
