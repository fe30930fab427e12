"""Round the weights of a network anew on a few items without labels, for `tvmquant.quantize`."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.data import Dataset, open_data
from tvmquant.errors import TrainingError
from tvmquant.progress import Progress
from tvmquant.quantization import apply_calibration
from tvmquant.reconstructed import Reconstructed
from tvmquant.stage_cache import taken_up
from tvmquant.training.items import Items, read
from tvmquant.training.recipe import METHOD_SECTIONS, Recipe
from tvmquant.training.reconstruction import Kept, narrow_layers, nothing_narrow, round_anew
from tvmquant.twin import Twin
from tvmquant.twin.quantizer_module import FakeQuantize

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph

# Of what is kept of layers that are rounded alone.
ALONE = "rounded"
BATCH = 64


def reconstruct(
    graph: Graph,
    data: Any,
    calibration: Calibration,
    *,
    out: str | Path,
    choices: Mapping[str, BitChoice] | None = None,
    recipe: Recipe | str | Path = "adaround",
    progress: Progress | None = None,
    **options: Any,
) -> Reconstructed:
    """Round the weights of few bits so that outputs of layers, or blocks, stay near.

    Parameters
    ----------
    graph : Graph
        Level L0, of one input.
    data : Dataset, or what `tvmquant.data.open_data` accepts
        A hundred items or so; labels are not used.
    calibration : Calibration
        Of the graph.
    out : path
        Folder: of a search that was interrupted, what is done is kept there.
    choices : mapping of str to BitChoice, optional
        As of `tvmquant.quantize`.
    recipe : Recipe, str or Path
        As of `Recipe.read`, with a reconstruction and without epochs.
    progress : callable, optional
        Receives the layers, or blocks, done and their number.
    **options
        Of `tvmquant.quantize`: ``activation_scheme``, ``weight_method``, ``bound_pairs``,
        ``residual_bits``.

    Returns
    -------
    Reconstructed
        What `tvmquant.quantize` takes, with the same calibration, choices and options.

    Raises
    ------
    TrainingError
        When the recipe does something else, no layer has weights of so few bits, or the items do
        not fit into memory.
    """
    recipe = checked_recipe(recipe)
    how, folder = recipe.reconstruction, Path(out)
    assert how is not None
    annotated = apply_calibration(
        graph, calibration, choices=choices, correct_bias=False, **options
    )
    if how.inputs == "float":
        return _alone(annotated, LayerRounder(graph, data, recipe, folder), progress)
    items = read_items(graph, data, folder)
    identity = {
        "model": graph.fingerprint(),
        "recipe": recipe.model_dump_json(),
        "data": items.digest(),
        "calibration": calibration.model_dump_json(),
        "choice of bit widths": str(sorted((k, str(v)) for k, v in (choices or {}).items())),
        "options": json.dumps(options, sort_keys=True),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    checkpoint = folder / f"reconstruction-{key}.pt"
    found = round_anew(
        annotated, graph.fingerprint(), items, recipe, folder, Kept(checkpoint, identity), progress
    )
    checkpoint.unlink(missing_ok=True)
    return found


def checked_recipe(recipe: Recipe | str | Path) -> Recipe:
    """Return a recipe that only reconstructs.

    Raises
    ------
    TrainingError
        When it trains, or says of the network what is an option here.
    """
    found = Recipe.read(recipe)
    name = "the recipe" if isinstance(recipe, Recipe) else f"recipe {recipe}"
    if found.reconstruction is None or found.epochs:
        raise TrainingError(
            f"{name}: trains, which is what `tvmquant train` does; expected one of 0 epochs with a "
            "reconstruction, such as adaround, brecq or qdrop"
        )
    if found.residual_bits is not None:
        raise TrainingError(
            f"{name}: residual_bits: is an option of its own here (--residual-bits); leave it out"
        )
    for section in ("insert_batch_norm", *METHOD_SECTIONS):
        if getattr(found, section):
            raise TrainingError(
                f"{name}: {section}: is of a training (`tvmquant train`); leave it out"
            )
    return found


def is_narrow(choices: Mapping[str, BitChoice], recipe: Recipe) -> bool:
    """Return whether a layer's weights have so few bits that they are rounded anew."""
    assert recipe.reconstruction is not None
    return any(1 < c.weight.bits <= recipe.reconstruction.most_bits for c in choices.values())


def check_narrow(graph: Graph, choices: Mapping[str, BitChoice], recipe: Recipe) -> None:
    """Raise `TrainingError` unless `is_narrow`."""
    assert recipe.reconstruction is not None
    if not is_narrow(choices, recipe):
        raise TrainingError(nothing_narrow(graph.name, recipe.reconstruction.most_bits))


def alone(recipe: Recipe) -> Recipe:
    """Return the recipe that rounds every layer on what the float network gives it.

    Its weights are then the same in whatever network, and are known before bit widths are chosen.
    """
    others = {"blocks": False, "fisher": False, "drop": 0.0, "step_lr": 0.0, "inputs": "float"}
    return Recipe.read(recipe, {f"reconstruction.{name}": v for name, v in others.items()})


def read_items(graph: Graph, data: Any, folder: Path | None) -> Items:
    """Read items of a network.

    Raises
    ------
    TrainingError
        When the network has several inputs, or memory and disk are too small.
    """
    found = data if isinstance(data, Dataset) else open_data(data, inputs=graph.item_inputs())
    return read(found.rebatched(graph.fixed_batch() or BATCH), folder=folder)


class LayerRounder:
    """Rounds layers one by one, each on what the float network gives it, and keeps what it finds.

    Parameters
    ----------
    graph : Graph
        Level L0.
    data : Dataset, or what `tvmquant.data.open_data` accepts
    recipe : Recipe
        As `alone` returns it.
    folder : Path
        Weights are kept in a folder there, for later calls.
    leaves : collection of str
        Layers that are left as they are.
    """

    def __init__(
        self,
        graph: Graph,
        data: Any,
        recipe: Recipe,
        folder: Path,
        leaves: Collection[str] = (),
    ) -> None:
        assert recipe.reconstruction is not None
        self.graph, self.recipe, self.folder = graph, recipe, folder
        self.how = recipe.reconstruction
        self._data, self.leaves = data, frozenset(leaves)

    @functools.cached_property
    def items(self) -> Items:
        """The items, read once."""
        return read_items(self.graph, self._data, self.folder)

    @functools.cached_property
    def _follows_from(self) -> list[str]:
        """What weights follow from, beside their steps."""
        return [self.graph.fingerprint(), self.items.digest(), self.recipe.model_dump_json()]

    @property
    def settings(self) -> list[Any]:
        """What tells it from others: what weights follow from, and which are left."""
        return [*self._follows_from, sorted(self.leaves)]

    def narrow(self, annotated: Graph) -> list[str]:
        """Return the layers of a calibrated graph (L1) that would be rounded anew."""
        found = narrow_layers(Twin(annotated.module), self.how)
        return [name for name in found if name not in self.leaves]

    def __call__(self, annotated: Graph, layer: str) -> Reconstructed:
        """Return the weight of a layer of a calibrated graph (L1)."""
        twin = Twin(annotated.module)
        quantizer = twin.quantizers[twin.weight_edges[layer]]
        assert isinstance(quantizer, FakeQuantize)
        steps = quantizer.steps_of(twin.weights[layer]).detach().contiguous().numpy()
        digest = hashlib.sha256(steps.tobytes() + str(int(quantizer.qmax)).encode())
        return taken_up(
            self.folder / ALONE,
            "weight",
            Reconstructed,
            [*self._follows_from, layer, digest.hexdigest()],
            lambda: round_anew(
                annotated, self.graph.fingerprint(), self.items, self.recipe, self.folder / ALONE,
                layers=[layer],
            ),
        )[0]  # fmt: skip


def _alone(annotated: Graph, rounder: LayerRounder, progress: Progress | None) -> Reconstructed:
    """Return the weights of all layers, each rounded alone."""
    names = rounder.narrow(annotated)
    if not names:
        raise TrainingError(nothing_narrow(annotated.name, rounder.how.most_bits))
    parts = []
    for number, name in enumerate(names, 1):
        parts.append(rounder(annotated, name))
        if progress is not None:
            progress(number, len(names))
    weights = {edge: weight for part in parts for edge, weight in part.weights.items()}
    return parts[0].model_copy(update={"weights": weights})
