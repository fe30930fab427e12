"""The part of a recipe that makes layers binary."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# What phases can change: the rest is the graph's.
OF_PHASES: Final = frozenset(
    {"real_weights", "gradient", "stochastic", "clip", "regularizer", "regularization"}
)


class Binarization(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    regularization: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-6

    @model_validator(mode="after")
    def _fits(self) -> Binarization:
        if self.inputs == "real" and (self.thresholds or self.shortcuts):
            raise ValueError("thresholds and shortcuts are of layers that read signs")
        if self.weights == "sum" and self.inputs == "real":
            raise ValueError("a sum of signs multiplies signs: inputs are 'sign'")
        return self

    def structure(self) -> dict[str, object]:
        """Return the fields that are the same in all phases."""
        return {k: v for k, v in self.model_dump().items() if k not in OF_PHASES}
