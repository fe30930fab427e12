"""What a family of kernels answers; each is one module of this folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

from tvm import tirx

from tvmquant.bit_choice import BitChoice
from tvmquant.machine import Machine
from tvmquant.schedules.epilogue import Epilogue
from tvmquant.schedules.families.contraction import Array, Contraction, Layer, Lowered, Operand

# Given `Family.name`, a spec and the layer's name: the tuned tiling, or None for the default.
Tilings: TypeAlias = Callable[[str, Any, str], Any]


class Family(ABC):
    """Kernels that compute some contractions, and what is known of them.

    A tiling decides the kernel's function itself (padded extents, packed shapes), not only its
    schedule, so the space of a layer is a list of tilings and not a trace of one function. Every
    value of the list computes the layer exactly; the default is always one of them.

    Attributes
    ----------
    name : str
        Under which tilings are recorded, with a spec; families of equal specs and kernels share it.
    operation : str
        What layers and kernels are called in reports.
    one_channel : bool
        Whether an output sums products of one input channel only: there are no neighbours then that
        a dot product of bytes could read together.
    """

    name: str
    operation: str
    one_channel: bool = False

    @abstractmethod
    def accepts(self, contraction: Contraction, choice: BitChoice, machine: Machine | None) -> bool:
        """Whether the kernels compute a contraction.

        Parameters
        ----------
        contraction : Contraction
        choice : BitChoice
            Formats of the weight and the activation.
        machine : Machine or None
            None while it is not chosen: whether there is one for which they do.
        """

    def scales_groups(
        self, contraction: Contraction, choice: BitChoice, machine: Machine | None
    ) -> bool:
        """Whether the kernels multiply the sums of groups of weights; else weights are whole.

        Asked of what the family accepts, with the same parameters.
        """
        return False

    @abstractmethod
    def lower(self, layer: Layer, machine: Machine, tilings: Tilings) -> Lowered:
        """Return the kernel of a layer that the family accepts, and its packed arguments.

        Raises
        ------
        QuantizationError
            When the weights do not fit their format.
        """

    @abstractmethod
    def default(self, spec: Any, machine: Machine) -> Any:
        """Return the tiling that is chosen without measuring."""

    @abstractmethod
    def others(self, spec: Any, machine: Machine) -> Iterator[Any]:
        """Yield every tiling that computes a spec exactly; it may hold the default."""

    @abstractmethod
    def kernel(self, spec: Any, tiling: Any) -> tirx.PrimFunc:
        """Return the scheduled kernel."""

    @abstractmethod
    def figures(self, spec: Any, tiling: Any) -> dict[str, float]:
        """Return what the time of a tiling depends on, for cost models.

        ``work`` (multiply-accumulates, padding included), ``useful`` (without padding), ``tasks``
        (of the parallel loop), ``accumulators`` (vectors in registers) and ``task_bytes`` (input of
        one task).
        """

    def tilings(self, spec: Any, machine: Machine) -> list[Any]:
        """Return every distinct tiling of a spec, the default first."""
        default = self.default(spec, machine)
        return list(dict.fromkeys([default, *self.others(spec, machine)]))

    def timing(self, spec: Any) -> Any:
        """Return the spec whose kernel takes as long as that of ``spec``: without mere values.

        The zero point that pads and the bounds of the clip are constants of the code, and differ
        between layers and between mixed-precision plans whose kernels are otherwise equal. Every
        tiling of the returned spec computes the given one exactly.
        """
        epilogue = spec.epilogue
        if isinstance(epilogue, Epilogue):
            # the clip to a table's entries and that of an int16 have no other bounds
            bounds = {"int16": (-(2**15), 2**15 - 1)}.get(epilogue.out_dtype, (0, 255))
            epilogue = replace(epilogue, qmin=bounds[0], qmax=bounds[1], zero_point=0)
        return replace(spec, input_zero_point=0, epilogue=epilogue)


def finishing(
    layer: Layer,
    length: int,
    shape: tuple[int, ...] | None = None,
    pack: Callable[[Array], Array] = lambda vector: vector,
) -> list[Operand | Array]:
    """Return the arguments of an epilogue (`schedules.epilogue.placeholders`).

    Parameters
    ----------
    layer : Layer
    length : int
        Of the vectors.
    shape : tuple of int, optional
        In which the kernel takes the second term.
    pack : callable, optional
        Orders a vector as the kernel reads it.
    """
    if layer.epilogue is None or layer.vectors is None:
        return []
    found: list[Operand | Array] = [pack(v) for v in layer.vectors.padded(length)]
    if layer.epilogue.residual:
        found.insert(3, Operand("residual", shape))
    if layer.vectors.table is not None:
        found.append(layer.vectors.table)
    return found
