"""What a training does: a small file, validated, from which everything else follows."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tvmquant.errors import TrainingError

SCHEMA_VERSION: Final = 1
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


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

    Notes
    -----
    Esser et al. (2020), "Learned Step Size Quantization"; Choi et al. (2018), "PACT"; Fan et al.
    (2021), "Training with Quantization Noise". Validation, and what ships, rounds all numbers to
    the nearest integer.
    """

    step: Literal["learned", "clip", "fixed"] = "learned"
    rounding: Rounding = Rounding()
    stochastic: bool = False
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0


class Optimizer(_Part):
    """Steps of gradient descent.

    Parameters
    ----------
    name : {"sgd", "adam"}
        SGD with Nesterov's momentum, or Adam with decoupled decay.
    lr, momentum, weight_decay : float
        Decay is that of weights only.
    step_lr : float
        Learning rate of quantizers' steps.
    """

    name: Literal["sgd", "adam"] = "sgd"
    lr: Positive = 0.01
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: NotNegative = 1e-4
    step_lr: Positive = 1e-4


class Schedule(_Part):
    """How the learning rates change.

    Parameters
    ----------
    decay : {"cosine", "linear", "constant"}
        To 0 at the end.
    warmup : float
        Share of the steps in which rates rise from 0.
    """

    decay: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class Objective(_Part):
    """What is minimised: a sum of weighted losses.

    Parameters
    ----------
    labels : float
        Of the cross entropy with labels.
    distillation : float
        Of the divergence (Kullback-Leibler) from the float network's probabilities.
    temperature : float
        By which logits are divided in the latter, whose weight is multiplied by its square (Hinton
        et al., 2015).
    """

    labels: NotNegative = 0.5
    distillation: NotNegative = 0.5
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _something(self) -> Objective:
        if self.labels == self.distillation == 0.0:
            raise ValueError("nothing to minimise: labels and distillation are both 0")
        return self


class Augmentation(_Part):
    """How an image is changed before each use.

    Parameters
    ----------
    shift : int
        Most pixels that it is moved by, either way; zeros follow.
    mirror : bool
        Whether half of them are mirrored from left to right.
    """

    shift: Annotated[int, Field(ge=0)] = 0
    mirror: bool = False


class Reconstruction(_Part):
    """How weights are rounded anew before anything else (`training.reconstruction`).

    Parameters
    ----------
    steps : int
        Of each layer.
    most_bits : int
        Layers whose weights have more are left.
    lr : float
        Learning rate of what is rounded up.
    """

    steps: Annotated[int, Field(ge=1)] = 500
    most_bits: Annotated[int, Field(ge=2, le=8)] = 4
    lr: Positive = 0.01


class Recipe(_Part):
    """A training.

    Parameters
    ----------
    schema_version : int
        1.
    epochs, batch_size : int
        0 epochs only reconstruct.
    seed : int
        Of the order of items and their augmentation.
    batch_norm : {"live", "frozen", "folded"}
        Normalize by the statistics of the batch, whose running means deploy; by those of the model,
        gains and shifts being trained; or folded into weights and biases before.
    weights, activations : Quantizer
    optimizer : Optimizer
    schedule : Schedule
    objective : Objective
    augmentation : Augmentation
    reconstruction : Reconstruction, optional
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    epochs: Annotated[int, Field(ge=0)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 128
    seed: Annotated[int, Field(ge=0)] = 0
    batch_norm: Literal["live", "frozen", "folded"] = "live"
    weights: Quantizer = Quantizer()
    activations: Quantizer = Quantizer()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    objective: Objective = Objective()
    augmentation: Augmentation = Augmentation()
    reconstruction: Reconstruction | None = None

    @model_validator(mode="after")
    def _does_something(self) -> Recipe:
        if self.epochs == 0 and self.reconstruction is None:
            raise ValueError("nothing to do: 0 epochs, and no reconstruction")
        return self

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
        for field, value in (changes or {}).items():
            *path, last = field.split(".")
            part = document
            for key in path:
                part = part.setdefault(key, {})
                if not isinstance(part, dict):
                    raise TrainingError(f"recipe {name}: {field}: {key} has no fields")
            part[last] = value
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
            message = first["msg"].removeprefix("Value error, ")
            raise TrainingError(f"recipe {name}: {where}{message}") from None


def names() -> list[str]:
    """Return the recipes that come with tvmquant."""
    return sorted(path.name[:-5] for path in _folder().iterdir() if path.name.endswith(".yaml"))


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
