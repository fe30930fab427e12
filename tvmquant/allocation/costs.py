"""What a layer takes under a bit choice: bytes, bit operations, milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tvmquant.errors import AllocationError

if TYPE_CHECKING:
    from tvmquant.bit_choice import BitChoice
    from tvmquant.layers import Layer

QUANTITIES: Final = ("latency", "size", "bops")
# Bias, multiplier, offset and shift of an output channel, 32 bits each.
CHANNEL_BYTES: Final = 16


def layer_bytes(layer: Layer, choice: BitChoice) -> int:
    """Return the bytes that a layer's constants take in the library, without padding.

    Weights are there at their own width, but for those that this makes smaller by less than 256
    bytes (`tvmquant.passes.store_weights`).
    """
    return choice.weight.bytes(layer.weights) + CHANNEL_BYTES * layer.outputs


def layer_bops(layer: Layer, choice: BitChoice) -> int:
    """Return multiply-accumulates times the bits of both factors (HAWQ-V3's BOPS)."""
    return layer.macs * choice.weight.bits * choice.activation.bits


@dataclass(frozen=True)
class Costs:
    """What choices take of each quantity.

    Parameters
    ----------
    latency : mapping of str to (mapping of str to float), optional
        Milliseconds by layer and choice.
    fixed_latency_ms : float
        Of what is no layer.
    """

    latency: Mapping[str, Mapping[str, float]] | None = None
    fixed_latency_ms: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.fixed_latency_ms):
            raise AllocationError(
                f"the latency of what is no layer is {self.fixed_latency_ms} ms; expected a finite "
                "number; measure it again"
            )

    def of(self, quantity: str, layer: Layer, choice: BitChoice) -> float:
        """Return what one layer takes.

        Raises
        ------
        AllocationError
            When its latency was not measured, or is no number of milliseconds.
        """
        if quantity == "size":
            return float(layer_bytes(layer, choice))
        if quantity == "bops":
            return float(layer_bops(layer, choice))
        if self.latency is None:
            raise AllocationError("a latency budget needs measured latencies; pass latency")
        value = self.latency.get(layer.id, {}).get(str(choice))
        if value is None:
            raise AllocationError(
                f"layer {layer.id!r} has no measured latency with {choice}; measure that choice "
                "too, or leave it out of the choices"
            )
        if not 0.0 <= value < math.inf:
            raise AllocationError(
                f"layer {layer.id!r}: its latency with {choice} is {value} ms; expected a finite "
                "number, 0 or more; measure it again"
            )
        return float(value)

    def total(
        self, quantity: str, layers: Sequence[Layer], choices: Mapping[str, BitChoice]
    ) -> float:
        """Return what a plan takes."""
        fixed = self.fixed_latency_ms if quantity == "latency" else 0.0
        return fixed + sum(self.of(quantity, layer, choices[layer.id]) for layer in layers)
