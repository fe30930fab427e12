"""What a training does: a small file, validated, from which everything else follows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvmquant.errors import TrainingError
from tvmquant.training.binary_recipe import Binarization

SCHEMA_VERSION: Final = 1
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
# Sections that choose another method than the plain one (`training.methods`), at most one.
METHOD_SECTIONS: Final[tuple[str, ...]] = (
    "importance", "widths", "affine", "proximal", "adaptive", "binarization",
)  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rounding(_Part):
    """The gradient that stands in for that of rounding (`training.rounding`).

    Parameters
    ----------
    shape : str
        One of `training.rounding.SHAPES`.
    delta : float
        How far the shape moves a gradient.
    alpha : float
        Steepness of ``tanh`` and ``invtanh``; of the latter below 2.
    """

    shape: Literal["ste", "pbgs", "ewgs", "acos", "tanh", "invtanh"] = "ste"
    delta: NotNegative = 0.0
    alpha: Positive = 1.9

    @model_validator(mode="after")
    def _finite(self) -> Rounding:
        if self.shape == "invtanh" and self.alpha >= 2.0:
            raise ValueError("alpha of invtanh is below 2: half-way between levels it is infinite")
        return self


class Quantizer(_Part):
    """How weights, or activations, are quantized while training.

    Parameters
    ----------
    step : {"learned", "clip", "fixed"}
        Whether steps are trained (LSQ), by what is clipped only (PACT), or stay as calibrated.
    rounding : Rounding
    stochastic : bool
        Whether numbers are rounded up as often as they are near the upper integer.
    share : float
        Of the numbers, drawn anew for each batch, that are quantized at all (QuantNoise).
    map : {"identity", "tanh", "interval"}
        What weights pass through before (`training.mapped_weights`).

    Notes
    -----
    Esser et al. (2020), "Learned Step Size Quantization"; Choi et al. (2018), "PACT"; Fan et al.
    (2021), "Training with Quantization Noise". Validation, and what ships, rounds all numbers to
    the nearest integer.
    """

    step: Literal["learned", "clip", "fixed"] = "learned"
    rounding: Rounding = Rounding()
    stochastic: bool = False
    share: Share = 1.0
    map: Literal["identity", "tanh", "interval"] = "identity"

    @model_validator(mode="after")
    def _one_range(self) -> Quantizer:
        if self.map == "interval" and self.step != "fixed":
            raise ValueError("step: an interval is learned in place of steps, which are fixed")
        return self


class Optimizer(_Part):
    """Steps of gradient descent.

    Parameters
    ----------
    name : {"sgd", "adam", "rmsprop"}
        SGD with Nesterov's momentum, Adam with decoupled decay, or RMSprop.
    lr, momentum, weight_decay : float
        Decay is that of weights only.
    step_lr : float
        Learning rate of quantizers' steps.
    most_norm : float, optional
        Longer gradients, of all parameters taken together, are made as short.
    """

    name: Literal["sgd", "adam", "rmsprop"] = "sgd"
    lr: Positive = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: NotNegative = 1e-4
    step_lr: Positive = 1e-4
    most_norm: Positive | None = None


class Schedule(_Part):
    """How the learning rates change.

    Parameters
    ----------
    decay : {"cosine", "linear", "steps", "constant"}
        To 0 at the end; or by a factor at each of some shares of the steps.
    warmup : float
        Share of the steps in which rates rise from 0.
    at : tuple of float
        Of ``steps``: shares of the steps after the warm-up.
    factor : float
        Of ``steps``.
    """

    decay: Literal["cosine", "linear", "steps", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    at: tuple[Share, ...] = (0.5, 0.75)
    factor: Share = 0.1


class Objective(_Part):
    """What is minimised: a sum of weighted losses.

    Parameters
    ----------
    labels : float
        Of the cross entropy with labels.
    smoothing : float
        Of the labels' probability, what all classes share (Szegedy et al., 2016).
    distillation : float
        Of the divergence (Kullback-Leibler) from the teacher's probabilities.
    temperature : float
        By which logits are divided in the latter, whose weight is multiplied by its square (Hinton
        et al., 2015).
    features : float
        Of the squared distance between the inputs of each layer and those of the teacher, in
        shares of the latter's square (Romero et al., 2015).
    teacher : {"float", "self"}
        The float network, which stays; or the network that is trained, as it is without any
        rounding (self-distillation).
    """

    labels: NotNegative = 0.5
    smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    distillation: NotNegative = 0.5
    temperature: Positive = 1.0
    features: NotNegative = 0.0
    teacher: Literal["float", "self"] = "float"

    @model_validator(mode="after")
    def _something(self) -> Objective:
        if self.labels == self.distillation == self.features == 0.0:
            raise ValueError("nothing to minimise: labels, distillation and features are 0")
        return self

    @property
    def is_taught(self) -> bool:
        """Whether a teacher is asked."""
        return bool(self.distillation or self.features)


class Augmentation(_Part):
    """How an image is changed before each use, in this order.

    Parameters
    ----------
    resized_crop : tuple of float, optional
        Least and greatest share of the area of a part that is resized to the whole; its sides are
        to each other as 3 to 4, or nearer.
    shift : int
        Most pixels that it is moved by, either way; zeros follow.
    mirror : bool
        Whether half of them are mirrored from left to right.
    brightness, contrast, saturation : float
        Most that is added, in units of the preprocessed image; most that distances from its mean,
        and from its mean over the channels, change by, as a share.
    mixup : float
        Parameter of the beta distribution that says in what shares two items, and their labels,
        are mixed (Zhang et al., 2018); 0 mixes none.
    call : str, optional
        ``module:function`` of a callable that maps images (N, C, H, W) to images. torch's global
        generator is seeded for each step.
    """

    resized_crop: tuple[Share, Share] | None = None
    shift: Annotated[int, Field(ge=0)] = 0
    mirror: bool = False
    brightness: NotNegative = 0.0
    contrast: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    saturation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    mixup: NotNegative = 0.0
    call: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        if self.resized_crop is not None and self.resized_crop[0] > self.resized_crop[1]:
            raise ValueError("resized_crop: the least share is greater than the greatest")
        return self


class Reconstruction(_Part):
    """How weights are rounded anew before anything else (`training.reconstruction`).

    Parameters
    ----------
    steps : int
        Of each layer, or block.
    most_bits : int
        Layers whose weights have more are left.
    lr : float
        Learning rate of what is rounded up.
    blocks : bool
        Whether it is the output of residual blocks, or of what else lies between points where a
        single tensor is alive, that shall stay near, and not that of every layer (BRECQ).
    fisher : bool
        Whether errors are weighted by the diagonal of the Fisher information of the output.
    drop : float
        Share of the numbers, drawn anew in every step, that are those of the float network instead
        of those of the network quantized so far: of a block's input, and of activations within it
        (QDrop).
    step_lr : float
        Learning rate of the steps of activations within blocks, as a share of each; 0: they stay.
    inputs : {"quantized", "float"}
        What layers are given: what the network quantized so far computes, or the float network. In
        the latter case a weight is rounded the same in whatever network.
    """

    steps: Annotated[int, Field(ge=1)] = 500
    most_bits: Annotated[int, Field(ge=2, le=8)] = 4
    lr: Positive = 0.01
    blocks: bool = False
    fisher: bool = False
    drop: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    step_lr: NotNegative = 0.0
    inputs: Literal["quantized", "float"] = "quantized"

    @model_validator(mode="after")
    def _consistent(self) -> Reconstruction:
        if self.step_lr and not self.blocks:
            raise ValueError("step_lr: activations are rounded within blocks; set blocks: true")
        if self.inputs == "float" and (self.blocks or self.drop):
            raise ValueError("inputs: float rounds layers alone; leave out blocks and drop")
        return self


class Affine(_Part):
    """Outputs of quantizers go from the float numbers to the quantized ones (`training.affine`).

    Parameters
    ----------
    until : float
        Share of the steps when only the quantized are left.
    weights, activations : bool
        What this holds for; the others are quantized from the first step on.
    """

    until: Share = 0.8
    weights: bool = True
    activations: bool = True


class Proximal(_Part):
    """Weights are drawn to their levels, and set to them in the end (`training.proximal`).

    Parameters
    ----------
    rate : float
        By which a step draws, in units of its learning rate, for each epoch that is done.
    hard : float
        Share of the steps from which weights are their levels.
    """

    rate: Positive = 1e-4
    hard: Share = 0.67


class Adaptive(_Part):
    """One set of weights for a network at several bit widths (`training.adaptive`).

    Parameters
    ----------
    widths : tuple of int
        Of weights and of activations.
    passes : {"all", "widest", "float"}
        What a step computes: every width; the widest alone, or the network without rounding, of
        which the other widths are made in the end.
    norms : {"shared", "weight", "choice"}
        Normalizations are the same for all widths; or have gains, shifts and statistics for each
        width of the weights before them; or for each pair of these and what their layer reads.
    teacher : {"objective", "next", "selected"}
        Who teaches other widths than the widest: nobody but the objective's; the next wider; or
        that which `training.adaptive` selects.
    most_distance : float, optional
        What the distance of weights comes to count in that selection (lambda); default: as much as
        the entropy does, in the first epoch.
    swap : float, optional
        Of a layer, the probability in the first step that it has the width of its pass, and not
        that of the selected teacher; default: always.
    swap_until : float
        Share of the steps after which the first layer always has it; the last from half of it on.
    mixed : bool
        Whether a step computes the widest, and widths drawn for each layer.
    reestimate : int
        Batches by which the statistics of normalizations are found anew at each width in the end.
    """

    widths: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=2)] = (
        8, 6, 4, 2,
    )  # fmt: skip
    passes: Literal["all", "widest", "float"] = "all"
    norms: Literal["shared", "weight", "choice"] = "weight"
    teacher: Literal["objective", "next", "selected"] = "objective"
    most_distance: NotNegative | None = None
    swap: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    swap_until: Share = 0.8
    mixed: bool = False
    reestimate: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Adaptive:
        if len(set(self.widths)) < len(self.widths):
            raise ValueError("widths: one is there twice")
        if self.swap is not None and self.teacher != "selected":
            raise ValueError("swap: layers are swapped with the teacher that is selected")
        return self


class Importance(_Part):
    """Steps of all widths learned together, as what layers are worth (`training.importance`).

    Parameters
    ----------
    widths : tuple of int
        Of weights and of activations; 8 bits are one of them in any case.
    alpha : float
        Weight of the steps of weights beside those of activations.
    most_gradient : float
        Greatest magnitude of a number of a gradient.
    """

    widths: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Field(min_length=1)] = (
        2, 3, 4, 6, 8,
    )  # fmt: skip
    alpha: NotNegative = 2.0
    most_gradient: Positive = 1.0


class Widths(_Part):
    """Learn the bit width of every output channel of weights, and of every activation.

    Parameters
    ----------
    weights, activations : float
        What they are to take, as shares of what they take at 8 bits: of all weights, and of all
        activations of one item, but the network's results.
    stage : {"pretrain", "learn", "tune"}
        Of a phase: widths may grow for nothing; or their sizes are penalised beyond the targets; or
        widths are whole numbers, chosen so that the targets are met, and stay.
    penalty : float
        Of ``(size / target - 1)^2`` where a size is beyond its target.
    rise : float
        Share of the steps of ``learn`` in which the penalty rises, linearly, from a hundredth.
    every : int
        Steps and ranges move in one of so many steps of training.
    least : int
        Bits that all have.

    Notes
    -----
    FDQMP; see `training.learned_widths`.
    """

    weights: Share = 0.4
    activations: Share = 0.4
    stage: Literal["pretrain", "learn", "tune"] = "learn"
    penalty: Positive = 100.0
    rise: Share = 0.5
    every: Annotated[int, Field(ge=1)] = 20
    least: Annotated[int, Field(ge=2, le=8)] = 2


class Phase(_Part):
    """A part of a training, with an optimizer and a schedule of its own.

    Parameters
    ----------
    share : float
        Of the epochs.
    changes : dict of str
        Fields of the recipe that have other values in it, such as ``{"weights.step": "fixed"}``.
    """

    share: Share
    changes: dict[str, Any] = {}


class Recipe(_Part):
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
                raise ValueError(f"phases: of {self.epochs} epochs none is phase {number}'s")
            fixed = {
                key for key in phase.changes
                if key in OF_ALL_PHASES or key.split(".")[0] in OF_ALL_PHASES - {*METHOD_SECTIONS}
            }  # fmt: skip
            if fixed:
                raise ValueError(f"phases: {min(fixed)} is the same in all phases")
            document = _changed(self.model_dump() | {"phases": (), "epochs": epochs}, phase.changes)
            found.append(Recipe.model_validate(document))
            begun += epochs
        return tuple(found)

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
            document, name = _document(source), str(source)
        if not isinstance(document, dict):
            raise TrainingError(f"recipe {name}: expected fields such as 'epochs: 3'")
        try:
            return cls.model_validate(_changed(document, changes or {}))
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
            message = first["msg"].removeprefix("Value error, ")
            raise TrainingError(f"recipe {name}: {where}{message}") from None
        except ValueError as error:
            raise TrainingError(f"recipe {name}: {error}") from None


# What a phase cannot change.
OF_ALL_PHASES: Final = frozenset(
    {
        "weights.map",
        "insert_batch_norm",
        "schema_version",
        "epochs",
        "batch_size",
        "seed",
        "reconstruction",
        "phases",
        *METHOD_SECTIONS,
    }
)


def names() -> list[str]:
    """Return the recipes that come with tvmquant."""
    return sorted(path.name[:-5] for path in _folder().iterdir() if path.name.endswith(".yaml"))


def _changed(document: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(document)
    for field, value in changes.items():
        *path, last = field.split(".")
        part = found
        for key in path:
            if part.get(key) is None:  # a section that is not there yet
                part[key] = {}
            part = part[key]
            if not isinstance(part, dict):
                raise ValueError(f"{field}: {key} has no fields")
        part[last] = value
    return found


def _folder() -> Any:
    return resources.files("tvmquant.training") / "recipes"


def _document(source: str | Path) -> Any:
    path = Path(source)
    try:
        if path.suffix in (".yaml", ".yml", ".json") or path.exists():
            text = path.read_text(encoding="utf-8")
        elif str(source) in names():
            text = (_folder() / f"{source}.yaml").read_text(encoding="utf-8")
        else:
            raise TrainingError(
                f"no recipe {str(source)!r}; expected one of {', '.join(names())}, or a YAML file"
            )
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"recipe {source}: {error}") from error
