"""What a kind of region is: the operators that one rounding computes, for both passes that ask.

`RegionFinder` asks `RegionKind.form` where a float graph is cut into regions, `Integerizer` asks
`RegionKind.value` what an operator of the annotated graph becomes. Both ask the kinds of an
operator one after the other, in the order of `regions.KINDS`, until one answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from tvm import relax

if TYPE_CHECKING:
    from tvmquant.passes.accumulator import Quantized
    from tvmquant.passes.insert_requantize import Integerizer
    from tvmquant.passes.quantized_regions import RegionFinder

# What a variable of the annotated graph becomes: relax.Expr, Quantized, QuantizedWeight,
# Accumulator or Open.
Value: TypeAlias = Any


@dataclass(frozen=True)
class Form:
    """What is known of a tensor while regions are found.

    Parameters
    ----------
    kind : str
        ``float``, ``input`` (a parameter of the graph, as float), ``quantized``, ``mover``,
        ``accumulator``, ``sloped``, ``clipped``, ``elementwise`` or ``extreme``.
    sources : tuple of Var
        The tensors a mover moves or an extreme compares, or the one an elementwise chain is a
        function of.
    residual : bool
        Whether an accumulator already has its second tensor term.
    axis : int, optional
        Of an accumulator: the only one that its constants may vary along, the output channels of
        a contraction; None where they may vary along all but the batch.
    """

    kind: str
    sources: tuple[relax.Var, ...] = ()
    residual: bool = False
    axis: int | None = None


class Open(ABC):
    """A region that no fake_quant has ended yet, other than an `Accumulator`."""

    @abstractmethod
    def rounded(
        self, integerizer: Integerizer, to: Quantized, name: str, call: relax.Call
    ) -> Quantized:
        """Emit the region and return its integers.

        Parameters
        ----------
        integerizer : Integerizer
        to : Quantized
            Scales, zero point and limits that they get.
        name : str
            Of the node, for messages and as an id.
        call : relax.Call
            What ends the region.
        """


class RegionKind(ABC):
    """A kind of region.

    Attributes
    ----------
    takes_wide : bool
        Whether it reads tensors of 16 bits whose scale came with the model.
    """

    takes_wide = False

    @property
    @abstractmethod
    def operators(self) -> frozenset[str]:
        """Names of the operators that may belong to it."""

    @abstractmethod
    def form(self, finder: RegionFinder, call: relax.Call) -> Form | None:
        """Return what a call of one of the operators gives, and ask for what it reads.

        None where the call is no such region; then nothing was asked for.
        """

    @abstractmethod
    def value(
        self, integerizer: Integerizer, var: relax.Var, call: relax.Call, values: Sequence[Value]
    ) -> Value | None:
        """Return what a call becomes whose operands are all integers or open regions.

        Parameters
        ----------
        integerizer : Integerizer
        var : Var
            What the call is bound to.
        call : relax.Call
            Of the annotated graph.
        values : sequence of Value
            What its tensors have become, in order.

        Returns
        -------
        Value or None
            None where the call is no such region, and stays float.
        """
