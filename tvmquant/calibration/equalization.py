"""Scales per channel: let channels of small range have small steps where all readers absorb them.

A tensor whose channels differ in range loses the small ones to the step of the largest. Where
everything that reads it multiplies by constants of its own, channel c may have the scale
``scale * f_c``, f_c in (0, 1]: the layer before divides by it in its requantization, which has a
multiplier per channel anyway, and a layer after multiplies its weights by it. This is cross-layer
equalization without touching the float network, and so is exact through any clip.

The weights pay: ``w_oc f_c`` has to be rounded with one step per output o. With
``f_c = (range_c / range)^a`` the error that rounding x and w adds to the output of a reader is, per
position (steps are uniform, errors independent)::

    sum_oc  w_oc^2 (s f_c)^2 / 12    +    sum_o step_o^2 / 12 sum_c E[x_c^2] / f_c^2

with ``step_o = max_c |w_oc| f_c / 127``. Of a few exponents a the one is taken for which this, in
parts of the output's power and summed over the readers, is least; none where it gains little. A
depthwise layer has one input channel for each output, and always gains.

References: Nagel et al., Data-Free Quantization, 2019, section 4.1 (cross-layer equalization); Xiao
et al., SmoothQuant, 2023, equation (4) (the exponent).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch import Tensor
from tvm import relax

from tvmquant.arithmetic import FloatArray
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of, span_name, used_vars
from tvmquant.passes import scale_factors
from tvmquant.passes.accumulator import factors_per_input
from tvmquant.passes.region_operators import input_axis, is_mover
from tvmquant.weight_pairs import outputs_first

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
# What is gained has to be worth that later data may leave the range of a channel: 3 dB.
MOST_NOISE = 0.5
# A channel's step is never finer: its levels beyond 8 bits carry nothing.
LEAST_FACTOR = 2.0**-10
# The extremes of a channel in n items are exceeded by later ones: of normally distributed values of
# which two dozen are seen, the greatest of very many is twice as large. Items count, not values:
# those of one image resemble each other. (SqueezeNet, 100 images, SQNR of 250 others: 29.5 dB with
# values counted and gains from 1 dB on, 31.6 dB with this, 31.7 dB with one scale for each tensor.)
RESERVE = 5.0
# These read a tensor of several scales as it is.
PLAIN_READERS = ("relax.add", "relax.subtract", "relax.mean", "relax.nn.avg_pool2d")


@dataclass(frozen=True)
class Reader:
    """What multiplies a tensor's channels by constants.

    Parameters
    ----------
    layer : str
        Name of a convolution or dense layer; empty for what only adds or averages.
    weight : float64 array, optional
        (O, I / groups, ...), of a layer.
    groups : int
    channels : int array, optional
        For each of the layer's I inputs the channel of the tensor that it is, -1 for others'.
    """

    layer: str
    weight: FloatArray | None = None
    groups: int = 1
    channels: Any = None


@dataclass
class Candidate:
    """A tensor that may have a scale per channel, and the range of each that was seen."""

    axis: int
    readers: list[Reader]
    low: Tensor | None = None
    high: Tensor | None = None
    count: int = 0

    def update(self, tensor: Tensor) -> None:
        """Take in one batch."""
        others = [i for i in range(tensor.ndim) if i != self.axis]
        low, high = tensor.amin(dim=others), tensor.amax(dim=others)
        self.count += len(tensor)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def factors(self, bounds: tuple[float, float], power: Mapping[str, FloatArray]) -> list[float]:
        """Return the factor of each channel, or nothing where one scale is as good.

        Parameters
        ----------
        bounds : (float, float)
            Range of the whole tensor.
        power : dict of str to float64 array
            Mean square of each input channel, by layer.
        """
        if self.low is None or self.high is None:
            return []
        low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
        if low == high:
            return []
        below = -self.low.double().numpy() / -low if low < 0.0 else np.zeros(len(self.low))
        above = self.high.double().numpy() / high if high > 0.0 else np.zeros(len(self.high))
        ratio = np.maximum(below, above)
        if (ratio > 0.0).any():  # of a channel that was never seen at work nothing is known
            ratio = np.where(ratio > 0.0, ratio, np.median(ratio[ratio > 0.0]))
        ratio = np.clip(ratio * (1.0 + RESERVE / np.sqrt(self.count)), LEAST_FACTOR, 1.0)
        scale = (high - low) / 255.0
        noise = [self._noise(scale, ratio**a, power) for a in EXPONENTS]
        best = int(np.argmin(noise))
        if noise[best] > MOST_NOISE * noise[0]:
            return []
        return [float(f"{f:.6g}") for f in ratio ** EXPONENTS[best]]

    def _noise(self, scale: float, factors: FloatArray, power: Mapping[str, FloatArray]) -> float:
        return sum(_noise_of(reader, scale, factors, power) for reader in self.readers)


def _noise_of(
    reader: Reader, scale: float, factors: FloatArray, power: Mapping[str, FloatArray]
) -> float:
    """Return the error at a reader's output in parts of its power."""
    if reader.weight is None:
        return float(np.square(scale * factors).mean() / 12.0) / max(scale**2 * 255.0, 1e-300)
    inputs = power[reader.layer]
    own = reader.channels >= 0
    shape = reader.weight.shape
    spread = np.where(own, factors[np.maximum(reader.channels, 0)], 1.0)
    steps = np.where(own, scale * spread, 0.0)  # other tensors' errors do not depend on it
    energy = np.square(reader.weight).reshape(*shape[:2], -1).sum(axis=2)[:, :, None]
    taps = int(np.prod(shape[2:]))

    def per_input(values: FloatArray) -> FloatArray:
        return factors_per_input(values, reader.groups, (*shape[:2], 1))

    from_input = float((energy * per_input(np.square(steps))).sum()) / 12.0
    scaled = np.abs(reader.weight).reshape(*shape[:2], -1).max(axis=2)[:, :, None]
    step = (scaled * per_input(spread)).max(axis=(1, 2)) / 127.0
    beside = per_input(inputs / np.square(spread)).sum(axis=(1, 2))
    from_weight = float((np.square(step) * beside).sum()) * taps / 12.0
    signal = float((energy * per_input(inputs)).sum())
    return (from_input + from_weight) / max(signal, 1e-300)


class Equalizer:
    """Watch the tensors of an annotated graph that may have scales per channel.

    Parameters
    ----------
    module : tvm.IRModule
        Annotated (L1), not calibrated.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self.candidates = dict(_Finder(module).candidates())

    def observe(self, edge_id: str, tensor: Tensor) -> None:
        """Take in one batch of a tensor."""
        if edge_id in self.candidates:
            self.candidates[edge_id].update(tensor)

    def factors(
        self, ranges: Mapping[str, tuple[float, float]], power: Mapping[str, Sequence[float]]
    ) -> dict[str, list[float]]:
        """Return the factors of the tensors that gain from them, by edge.

        Parameters
        ----------
        ranges : dict of str to (float, float)
            Range of each edge.
        power : dict of str to sequence of float
            Mean square of each input channel, by layer.
        """
        powers = {name: np.asarray(values) for name, values in power.items()}
        chosen = {
            name: candidate.factors(ranges[name], powers)
            for name, candidate in self.candidates.items()
        }
        return {name: factors for name, factors in chosen.items() if factors}


class _Finder:
    """Find the tensors whose readers all absorb a scale per channel."""

    def __init__(self, module: tvm.IRModule) -> None:
        function = module["main"]
        self.values = dict(bindings_of(function))
        self.readers: dict[relax.Var, list[tuple[relax.Var, relax.Expr]]] = {}
        for var, value in self.values.items():
            for read in {*used_vars(value)}:
                self.readers.setdefault(read, []).append((var, value))

    def candidates(self) -> Iterator[tuple[str, Candidate]]:
        """Yield (edge, candidate)."""
        for var, value in self.values.items():
            if not qop.is_call(value, qop.FAKE_QUANT):
                continue
            attrs = qop.attributes(value)
            wanted = attrs["role"] == qop.ACTIVATION and not attrs["calibrated"]
            if not wanted or attrs.get("shares") == "scale":
                continue
            extents = list(var.ty.shape.values)
            axis = scale_factors.channel_axis(self.values, value.args[0])
            if axis is None or len(extents) < 2 or not isinstance(extents[axis], tvm.tirx.IntImm):
                continue
            channels = int(extents[axis])
            probe = np.arange(1.0, channels + 1.0)
            probe = probe.reshape([-1 if i == axis else 1 for i in range(len(extents))])
            readers = self._readers(var, probe)
            if channels > 1 and readers and any(r.weight is not None for r in readers):
                yield attrs["id"], Candidate(axis, readers)

    def _readers(self, var: relax.Var, probe: FloatArray) -> list[Reader] | None:
        """Return what reads a tensor through movers; None if something cannot absorb factors.

        Parameters
        ----------
        var : Var
        probe : float64 array
            In place of factors: one more than the number of the channel, 0 for other tensors'.
        """
        found: list[Reader] = []
        for result, value in self.readers.get(var, []):
            readers = self._reader(var, result, value, probe)
            if readers is None:
                return None
            found += readers
        return found

    def _reader(
        self, var: relax.Var, result: relax.Var, value: relax.Expr, probe: FloatArray
    ) -> list[Reader] | None:
        if isinstance(value, relax.Var):
            return self._readers(result, probe)
        if not isinstance(value, relax.Call):
            return None
        if is_mover(value):
            inputs = [probe if v.same_as(var) else np.zeros((1,) * probe.ndim)
                      for v in used_vars(value)]  # fmt: skip
            fields = getattr(value.args[0], "fields", ())
            if any(isinstance(f, tvm.ir.GenericConst) for f in fields):
                return None
            moved = scale_factors.moved(value, inputs)
            return None if moved is None else self._readers(result, moved)
        if qop.is_call(value, *scale_factors.LAYERS):
            return self._layer(value, probe)
        if qop.is_call(value, *PLAIN_READERS) and len(used_vars(value)) > 0:
            scalar = any(a.size == 1 for a in map(qop.constant_array, value.args) if a is not None)
            return None if scalar else [Reader("")]
        return None

    def _layer(self, call: relax.Call, probe: FloatArray) -> list[Reader] | None:
        """Return the reader that a convolution or dense layer with a constant weight is."""
        quantized = self.values.get(call.args[1])
        weight = qop.constant_array(quantized.args[0]) if quantized is not None else None
        axis = input_axis(call)
        if weight is None or scale_factors.varying_axes(probe) != [axis]:
            return None
        attrs = qop.attributes(quantized)
        ordered = outputs_first(weight.astype(np.float64), attrs["axis"], attrs["groups"])
        if attrs["fixed"] and ordered.shape[1] > 1:
            return None  # the model's integers are not multiplied
        channels = probe.reshape(-1).astype(np.int64) - 1
        return [Reader(span_name(call), ordered, attrs["groups"], channels)]
