"""The sections that every recipe has, and that of rounding anew."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """A part of a recipe; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rounding(Section):
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


class Quantizer(Section):
    """How weights, or activations, are quantized while training.

    Parameters
    ----------
    step : {"learned", "clip", "fixed"}
        Whether steps are trained (LSQ), by what is clipped only (PACT, whose clips begin as
        calibrated and do not decay here), or stay as calibrated.
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


class Optimizer(Section):
    """Steps of gradient descent.

    Parameters
    ----------
    name : {"sgd", "adam", "rmsprop"}
        SGD with Nesterov's momentum, Adam with decoupled decay, or RMSprop.
    lr, momentum, weight_decay : float
        Momentum is not Adam's, whose are 0.9 and 0.999. Decay is that of weights only.
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


class Schedule(Section):
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


class Objective(Section):
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


class Augmentation(Section):
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


class Reconstruction(Section):
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
