"""The sections of recipes that choose another method than the plain one."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from tvmquant.training.sections import NotNegative, Positive, Section, Share

# Of binarization, what phases can change: the rest is the graph's.
OF_BINARY_PHASES: Final = frozenset(
    {"real_weights", "gradient", "stochastic", "clip", "regularizer", "regularization"}
)


class Affine(Section):
    """Outputs of quantizers go from the float numbers to the quantized ones (`training.affine`).

    Parameters
    ----------
    until : float
        Share of the steps, of each phase anew, when only the quantized are left.
    weights, activations : bool
        What this holds for; the others are quantized from the first step on.
    """

    until: Share = 0.8
    weights: bool = True
    activations: bool = True


class Proximal(Section):
    """Weights are drawn to their levels, and set to them in the end (`training.proximal`).

    Parameters
    ----------
    rate : float
        By which a step draws, in units of its learning rate, for each epoch of its phase that is
        done.
    hard : float
        Share of the steps of a phase from which weights are their levels.
    """

    rate: Positive = 1e-4
    hard: Share = 0.67


class Adaptive(Section):
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
        if self.most_distance is not None and self.teacher != "selected":
            raise ValueError("most_distance: says which teacher is selected; set teacher: selected")
        if self.teacher != "objective" and (self.passes != "all" or self.mixed):
            raise ValueError("teacher: wider passes teach; set passes: all and mixed: false")
        if self.mixed and self.passes != "all":
            raise ValueError("mixed: widths are drawn for a pass more; set passes: all")
        if self.reestimate and self.norms == "shared":
            raise ValueError("reestimate: widths that share norms have one set; set norms: weight")
        return self


class Importance(Section):
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


class Widths(Section):
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


class Binarization(Section):
    """Layers of one bit, or of few values, while training (`training.binary`).

    Parameters
    ----------
    layers : tuple of str
        Names of ONNX nodes, or patterns such as ``layer3*``; of none, all but the ends that can be,
        or, where the model has signs already, those that it has.
    weights : {"sign", "ternary", "two_scales", "sum"}
        Signs times a magnitude (BWN); -a, 0 and a (TWN); -n, 0 and p, both learned (TTQ), which
        ship as weights of 8 bits; or a sum of signs, each times a number (ABC-Net).
    terms : int
        Of ``sum``.
    scale : bool
        Of ``sign``: whether the magnitude is the mean of each channel, or 1.
    inputs : {"sign", "real"}
        Whether a layer reads signs, or activations of the widths that are chosen.
    gradient : str
        Of signs: one of `tvmquant.nn.GRADIENTS`.
    thresholds, shortcuts : bool
    activation : {"relu", "hardtanh", "slopes", "none"}
        As of `passes.insert_binarization.Rewrite`.
    real_weights : bool
        Of a phase: whether weights stay real numbers in it.
    stochastic : bool
        Whether a weight is 1 as often as ``clip((w + 1) / 2, 0, 1)`` says, while training.
    clip : bool
        Whether the real numbers behind weights are kept between -1 and 1.
    regularizer : {"none", "l1", "l2"}
        Of the distances between magnitudes of weights and that of their signs (BNN+).
    regularization : float
        Weight of their sum.
    """

    layers: tuple[str, ...] = ()
    weights: Literal["sign", "ternary", "two_scales", "sum"] = "sign"
    terms: Annotated[int, Field(ge=1, le=3)] = 3
    scale: bool = True
    inputs: Literal["sign", "real"] = "sign"
    gradient: Literal["ste", "xnor", "bireal", "reactnet", "bnn+"] = "ste"
    thresholds: bool = False
    shortcuts: bool = False
    activation: Literal["relu", "hardtanh", "slopes", "none"] = "relu"
    real_weights: bool = False
    stochastic: bool = False
    clip: bool = False
    regularizer: Literal["none", "l1", "l2"] = "none"
    regularization: NotNegative = 1e-6

    @model_validator(mode="after")
    def _fits(self) -> Binarization:
        if self.inputs == "real" and (self.thresholds or self.shortcuts):
            raise ValueError("thresholds and shortcuts are of layers that read signs")
        if self.weights == "sum" and self.inputs == "real":
            raise ValueError("a sum of signs multiplies signs: inputs are 'sign'")
        return self

    def structure(self) -> dict[str, object]:
        """Return the fields that are the same in all phases."""
        return {k: v for k, v in self.model_dump().items() if k not in OF_BINARY_PHASES}
