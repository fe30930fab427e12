"""What a report says: the manifest, the record of the bit widths and times, joined by layer."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tvmquant.allocation.budget import Budget, format_amount
from tvmquant.allocation.costs import QUANTITIES
from tvmquant.bit_choice import BitChoice
from tvmquant.deploy.manifest import LayerInfo, Manifest, describe_pairs, mean_width
from tvmquant.errors import AllocationError, DataError, QuantizationError
from tvmquant.mixed_precision import LayerRecord, MixedPrecisionRecord, PlanPoint
from tvmquant.output_quality import poor_outputs
from tvmquant.output_record import OutputRecord
from tvmquant.report.timing import Timing

# The plan that every other is compared with.
BASELINE = "w8a8"


@dataclass(frozen=True)
class Row:
    """Neighbouring kernel calls of one ONNX node.

    Parameters
    ----------
    number : int
        Place in execution order, from 1.
    id, op : str
    kernels : tuple of str
    output, output_bytes : str, int
        Type and shape of the result of its last kernel, as text, and its size.
    macs : int
    choice : str
        Bit widths; empty where it has no weights, or computes in float.
    dynamic : bool
        The range of what it reads is found at run time.
    weight_bits : float
        Mean of its weight's channels, where they are stored at widths of their own; else 0.
    measured_ms : float or None
        On this machine, now.
    record : LayerRecord or None
        What is known of how its widths were chosen.
    """

    number: int
    id: str
    op: str
    kernels: tuple[str, ...]
    output: str
    output_bytes: int
    macs: int
    choice: str
    dynamic: bool = False
    weight_bits: float = 0.0
    measured_ms: float | None = None
    record: LayerRecord | None = None

    @property
    def predicted_ms(self) -> float | None:
        """At its choice."""
        return self.record.milliseconds.get(self.record.choice) if self.record else None

    @property
    def weight_bytes(self) -> int | None:
        """Of its weight values at their width, without scales and biases."""
        if self.record is None:
            return None
        if self.weight_bits:
            return math.ceil(self.record.weights * self.weight_bits / 8)
        return BitChoice.parse(self.record.choice).weight.bytes(self.record.weights)

    @property
    def milliseconds(self) -> Mapping[str, float]:
        """Predicted, by choice."""
        return self.record.milliseconds if self.record else {}

    @property
    def perturbation(self) -> Mapping[str, float]:
        """Sensitivity, by choice."""
        return self.record.perturbation if self.record else {}


@dataclass(frozen=True)
class Total:
    """Sums over the rows that have something in common.

    Parameters
    ----------
    name : str
    layers, macs : int
    weights, weight_bytes : int or None
    predicted_ms, measured_ms : float or None
        None where no row has it.
    """

    name: str
    layers: int
    macs: int
    weights: int | None
    weight_bytes: int | None
    predicted_ms: float | None
    measured_ms: float | None


@dataclass(frozen=True)
class Limit:
    """A budget and what the chosen plan takes of it.

    Parameters
    ----------
    quantity, text : str
        ``latency``, ``size`` or ``bops``, and the budget as the user wrote it.
    value : float
        In milliseconds, bytes or bit operations.
    taken : float
        By the chosen plan; of the latency the measured one, where it is known.
    """

    quantity: str
    text: str
    value: float
    taken: float

    @property
    def is_kept(self) -> bool:
        """Whether the plan stays within the budget."""
        return self.taken <= self.value


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Parameters
    ----------
    manifest : Manifest
    record : MixedPrecisionRecord or None
    timing : Timing or None
    rows : tuple of Row
        In execution order.
    choices : tuple of str
        All that occur, from the widest to the narrowest.
    limits : tuple of Limit
    outputs : OutputRecord or None
        How close the outputs are to the float model's.
    """

    manifest: Manifest
    record: MixedPrecisionRecord | None
    timing: Timing | None
    rows: tuple[Row, ...] = field(repr=False)
    choices: tuple[str, ...]
    limits: tuple[Limit, ...] = ()
    outputs: OutputRecord | None = None

    @property
    def weight_pairs(self) -> str:
        """How pairs of weights are rounded, in words; empty where it is not known."""
        return describe_pairs(layer.weight_pairs for layer in self.manifest.layers)

    def with_timing(self, timing: Timing) -> Content:
        """Add the times of this machine.

        Parameters
        ----------
        timing : Timing
            One time for each kernel call of the manifest.
        """
        times = iter(timing.kernels_ms)
        rows = tuple(
            dataclasses.replace(row, measured_ms=sum(next(times) for _ in row.kernels))
            for row in self.rows
        )
        return dataclasses.replace(self, timing=timing, rows=rows)

    @property
    def widths(self) -> tuple[Total, ...]:
        """Sums over the layers of each bit width."""
        totals = _totals((row.choice, row) for row in self.rows if row.choice)
        return tuple(sorted(totals, key=lambda total: _narrowness(total.name)))

    @property
    def operations(self) -> tuple[Total, ...]:
        """Sums over the rows of each operation, the slowest first where times are known."""
        totals = _totals((row.op, row) for row in self.rows)
        return tuple(
            sorted(totals, key=lambda t: (-(t.measured_ms or t.predicted_ms or 0.0), -t.macs))
        )

    @property
    def baseline(self) -> PlanPoint | None:
        """The uniform plan of `BASELINE`."""
        return _baseline(self.record) if self.record else None

    @property
    def plans(self) -> tuple[PlanPoint, ...]:
        """The uniform plans, then the chosen one."""
        return (*self.record.uniform, self.record.chosen) if self.record else ()

    @property
    def speedup(self) -> tuple[float, str] | None:
        """How many times faster than `BASELINE` the chosen plan is, measured where both were."""
        if self.record is None or (base := self.baseline) is None:
            return None
        chosen = self.record.chosen
        if base.measured_ms and chosen.measured_ms:
            return base.measured_ms / chosen.measured_ms, "measured"
        if base.predicted_ms > 0 and chosen.predicted_ms > 0:
            return base.predicted_ms / chosen.predicted_ms, "predicted"
        return None

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader has to know before trusting the figures."""
        found = []
        if self.record is not None:
            built = self.manifest.target["config"], self.manifest.threads
            if built != (self.record.target, self.record.threads):
                found.append(
                    f"Bit widths were chosen for {self.record.target} with "
                    f"{_threads(self.record.threads)}; this library is built for {built[0]} with "
                    f"{_threads(built[1])}. Latencies of the plan do not hold for it."
                )
            if self.record.chosen.measured_ms is None:
                found.append("The chosen plan was not measured end to end.")
            found += [
                f"The chosen plan exceeds its budget of {limit.quantity}: "
                f"{format_amount(limit.quantity, limit.taken)} of "
                f"{format_amount(limit.quantity, limit.value)}."
                for limit in self.limits
                if not limit.is_kept
            ]
        if self.outputs is not None:
            found += [f"{text}." for text in poor_outputs(self.outputs.qualities())]
        return tuple(found)


def read_content(
    manifest: Manifest,
    record: MixedPrecisionRecord | None = None,
    outputs: OutputRecord | None = None,
) -> Content:
    """Join what is known of a library.

    Parameters
    ----------
    manifest : Manifest
    record : MixedPrecisionRecord, optional
        Of the plan it was compiled with.
    outputs : OutputRecord, optional
        Of this library.

    Raises
    ------
    DataError
        If the record names a layer or bit widths that the library does not have, or a choice or a
        budget that is none.
    """
    records = {layer.id: layer for layer in record.layers} if record else {}
    contractions = {layer.id: layer for layer in manifest.layers if layer.choice}
    for layer_record in records.values():
        _check(layer_record, contractions.get(layer_record.id))
    # The same kernel may run in several places under no other name than its own.
    calls = [list(group) for _, group in itertools.groupby(manifest.layers, lambda layer: layer.id)]
    rows = tuple(_row(number, group, records) for number, group in enumerate(calls, 1))
    names = {row.choice for row in rows if row.choice}
    for layer_record in records.values():
        names |= layer_record.perturbation.keys() | layer_record.milliseconds.keys()
    choices = tuple(sorted(names, key=_narrowness))
    limits = tuple(_limits(record)) if record else ()
    return Content(manifest, record, None, rows, choices, limits, outputs)


def _baseline(record: MixedPrecisionRecord) -> PlanPoint | None:
    return next((point for point in record.uniform if point.name == BASELINE), None)


def _amounts(plan: PlanPoint) -> dict[str, float]:
    """Return what a plan is predicted to take of each quantity."""
    return {"latency": plan.predicted_ms, "size": plan.size_bytes, "bops": plan.bops}


def _limits(record: MixedPrecisionRecord) -> Iterator[Limit]:
    """Yield the budgets of a record; raise DataError where one is none."""
    plan, base = record.chosen, _baseline(record)
    for quantity, text in record.budgets.items():
        if quantity not in QUANTITIES:
            raise DataError(f"budget of {quantity!r}; expected one of {', '.join(QUANTITIES)}")
        try:
            budget = Budget.parse(text, quantity)
        except AllocationError as error:
            raise DataError(str(error)) from None
        if base is None and budget.relative:
            raise DataError(f"{quantity} budget {text!r}, but no plan named {BASELINE!r}")
        reference = _amounts(base)[quantity] if base else 0.0
        taken = _amounts(plan)[quantity]
        if quantity == "latency" and plan.measured_ms is not None:
            taken = plan.measured_ms
        yield Limit(quantity, text, budget.limit(reference), taken)


def _row(number: int, calls: list[LayerInfo], records: Mapping[str, LayerRecord]) -> Row:
    main = next((call for call in calls if call.choice), calls[0])
    last = calls[-1]
    record = records.get(main.id) if main.choice else None
    return Row(
        number=number,
        id=main.id,
        op=main.op,
        kernels=tuple(call.kernel for call in calls),
        output=f"{last.dtype} {'x'.join(map(str, last.shape))}",
        output_bytes=math.ceil(math.prod(last.shape) * _bits(last.dtype) / 8),
        macs=main.macs,
        choice=main.choice,
        dynamic=main.dynamic,
        weight_bits=mean_width(main.channel_widths),
        record=record,
    )


def _check(record: LayerRecord, main: LayerInfo | None) -> None:
    """Raise DataError where a record does not fit the kernel that computes its layer."""
    layer = f"layer {record.id!r}"
    if main is None:
        raise DataError(f"{layer} is not one of this library; the record is of another")
    for name in {record.choice, *record.perturbation, *record.milliseconds}:
        try:
            BitChoice.parse(name)
        except QuantizationError as error:
            raise DataError(f"{layer}: {error}") from None
    if record.choice != main.choice:
        raise DataError(
            f"{layer}: choice {record.choice}, but the library has {main.choice}; the record is of "
            "another"
        )


def _totals(items: Iterable[tuple[str, Row]]) -> tuple[Total, ...]:
    groups: dict[str, list[Row]] = {}
    for name, row in items:
        groups.setdefault(name, []).append(row)

    def total(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    def whole(values: Iterable[int | None]) -> int | None:
        found = total(values)
        return None if found is None else int(found)

    return tuple(
        Total(
            name=name,
            layers=len(rows),
            macs=sum(row.macs for row in rows),
            weights=whole(row.record.weights if row.record else None for row in rows),
            weight_bytes=whole(row.weight_bytes for row in rows),
            predicted_ms=total(row.predicted_ms for row in rows),
            measured_ms=total(row.measured_ms for row in rows),
        )
        for name, rows in groups.items()
    )


def _narrowness(choice: str) -> tuple[int, ...]:
    return BitChoice.parse(choice).narrowness


def _bits(dtype: str) -> int:
    digits = re.search(r"[0-9]+", dtype)
    return int(digits.group()) if digits else 8


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
