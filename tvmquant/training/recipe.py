"""What a training does: a small file, validated, from which everything else follows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from tvmquant.errors import TrainingError
from tvmquant.training.method_sections import (
    Adaptive,
    Affine,
    Binarization,
    Importance,
    Proximal,
    Widths,
)
from tvmquant.training.recipe_files import changed, document_of, told
from tvmquant.training.sections import (
    Augmentation,
    Objective,
    Optimizer,
    Quantizer,
    Reconstruction,
    Schedule,
    Section,
    Share,
)

SCHEMA_VERSION: Final = 1
# Sections that choose another method than the plain one (`training.methods`), at most one.
METHOD_SECTIONS: Final[tuple[str, ...]] = (
    "importance", "widths", "affine", "proximal", "adaptive", "binarization",
)  # fmt: skip
# What a phase cannot change at all.
OF_ALL_PHASES: Final[tuple[str, ...]] = (
    "schema_version", "epochs", "batch_size", "seed", "insert_batch_norm", "residual_bits",
    "reconstruction", "phases",
)  # fmt: skip


class Phase(Section):
    """A part of a training, with an optimizer and a schedule of its own.

    Parameters
    ----------
    share : float
        Of the epochs.
    changes : dict of str
        Fields of the recipe that have other values in it, such as ``{"weights.step": "fixed"}``.
    """

    share: Share
    changes: dict[str, Any] = Field(default_factory=dict)


class Recipe(Section):
    """A training.

    Parameters
    ----------
    schema_version : int
        1.
    epochs, batch_size : int
        0 epochs only reconstruct. A batch is that of all processes together.
    seed : int
        Of the order of items and their augmentation.
    precision : {"float32", "bfloat16"}
        Of convolutions and dense layers while training; all else, and what ships, is not changed.
    batch_norm : {"live", "frozen", "folded"}
        Normalize by the statistics of the batch, whose running means deploy; by those of the model,
        gains and shifts being trained; or folded into weights and biases before.
    insert_batch_norm : bool
        Whether layers that have no normalization get one, which is the identity at first: for
        models that were exported with theirs folded.
    weights, activations : Quantizer
    residual_bits : int, optional
        As of `tvmquant.quantize`.
    optimizer : Optimizer
    schedule : Schedule
    objective : Objective
    augmentation : Augmentation
    reconstruction : Reconstruction, optional
    adaptive : Adaptive, optional
    importance : Importance, optional
    widths : Widths, optional
    binarization : Binarization, optional
    phases : tuple of Phase
        Of no phase, the whole is one.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    epochs: Annotated[int, Field(ge=0)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 128
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    batch_norm: Literal["live", "frozen", "folded"] = "live"
    insert_batch_norm: bool = False
    weights: Quantizer = Quantizer()
    activations: Quantizer = Quantizer()
    residual_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    objective: Objective = Objective()
    augmentation: Augmentation = Augmentation()
    reconstruction: Reconstruction | None = None
    adaptive: Adaptive | None = None
    importance: Importance | None = None
    widths: Widths | None = None
    affine: Affine | None = None
    proximal: Proximal | None = None
    binarization: Binarization | None = None
    phases: tuple[Phase, ...] = ()

    @model_validator(mode="after")
    def _does_something(self) -> Recipe:
        if self.epochs == 0 and self.reconstruction is None:
            raise ValueError("nothing to do: 0 epochs, and no reconstruction")
        chosen = [name for name in METHOD_SECTIONS if getattr(self, name) is not None]
        if self.epochs == 0 and chosen:
            raise ValueError(f"epochs: 0, and {chosen[0]} is a way to train")
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)}: a training has one of them")
        if chosen == ["importance"]:
            self._learns_importance()
        if chosen == ["adaptive"]:
            self._serves_widths()
        self._maps_weights(chosen)
        if self.insert_batch_norm and self.batch_norm == "folded":
            raise ValueError("insert_batch_norm: what batch_norm: folded folds is not inserted")
        if self.insert_batch_norm and chosen == ["importance"]:
            raise ValueError("insert_batch_norm: a plan is for the layers that the model has")
        if self.binarization is not None and self.batch_norm == "folded":
            raise ValueError("batch_norm: folded, and binary layers are normalized while training")
        if self.phases:
            self.in_phases()
        return self

    def _maps_weights(self, chosen: list[str]) -> None:
        if self.activations.map != "identity":
            raise ValueError("activations.map: weights are mapped only, which costs nothing later")
        if self.weights.map == "identity":
            return
        if others := [
            name
            for name in (*chosen, "reconstruction")
            if name != "affine" and getattr(self, name) is not None
        ]:
            raise ValueError(f"weights.map: {others[0]} has rounding of its own")

    def _serves_widths(self) -> None:
        if self.reconstruction is not None:
            raise ValueError("reconstruction: rounds at one width, and adaptive has several")
        if self.weights.stochastic or self.weights.share < 1.0:
            raise ValueError(
                "weights: narrower ones follow from the nearest integers of the widest"
            )

    def _learns_importance(self) -> None:
        if self.reconstruction is not None:
            raise ValueError("reconstruction: rounds at one width, and importance has several")
        for name in ("weights", "activations"):
            if getattr(self, name).step != "learned":
                raise ValueError(f"{name}.step: importance is what is learned of steps")

    def in_phases(self) -> tuple[Recipe, ...]:
        """Return the recipe of every phase, with the epochs that are its own.

        Raises
        ------
        ValueError
            When a phase has no epoch, or changes what cannot be changed.
        """
        if not self.phases:
            return (self,)
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"phases: shares add up to {total:g}, not to 1")
        found, done, begun = [], 0.0, 0
        for number, phase in enumerate(self.phases, 1):
            done += phase.share
            epochs = round(done * self.epochs) - begun
            if epochs < 1:
                raise ValueError(
                    f"phases: of {self.epochs} epochs none is phase {number}'s; train more epochs"
                )
            own = self.model_copy(update={"phases": (), "epochs": epochs})
            try:
                changing = Recipe.model_validate(changed(own.model_dump(), phase.changes))
            except ValidationError as error:
                raise ValueError(f"phases: phase {number}: {told(error, Recipe)}") from None
            own.check_same(changing)
            found.append(changing)
            begun += epochs
        return tuple(found)

    def check_same(self, other: Recipe) -> None:
        """Refuse a phase that differs in what all have in common, such as the network's form.

        Raises
        ------
        ValueError
            Names the field.
        """
        same = [name for name in OF_ALL_PHASES if getattr(self, name) != getattr(other, name)]
        same += [name for name in METHOD_SECTIONS
                 if (getattr(self, name) is None) != (getattr(other, name) is None)]  # fmt: skip
        same += ["weights.map"] * (self.weights.map != other.weights.map)
        same += ["batch_norm: folded"] * (
            (self.batch_norm == "folded") != (other.batch_norm == "folded")
        )
        if same:
            raise ValueError(f"phases: {same[0]} is the same in all phases")

    @classmethod
    def read(cls, source: Recipe | str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """Return a recipe of that name, or that a file holds.

        Parameters
        ----------
        source : Recipe, str or Path
            One of `names`, or a YAML file.
        changes : mapping of str, optional
            Fields that are to have other values, such as ``{"optimizer.lr": 0.005}``.

        Raises
        ------
        TrainingError
            When there is none, or a field is unknown or out of range; names the field.
        """
        if isinstance(source, Recipe):
            document, name = source.model_dump(), "recipe"
        else:
            document, name = document_of(source), str(source)
        if not isinstance(document, dict):
            raise TrainingError(f"recipe {name}: expected fields such as 'epochs: 3'")
        try:
            return cls.model_validate(changed(document, changes or {}))
        except ValidationError as error:
            raise TrainingError(f"recipe {name}: {told(error, cls)}") from None
        except ValueError as error:
            raise TrainingError(f"recipe {name}: {error}") from None
