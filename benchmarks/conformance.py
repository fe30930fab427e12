"""What becomes of the node tests of ONNX: how many are right, refused and why, or wrong."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import signal
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.conformance_cases import (
    CRASH,
    EXECUTORS,
    FAILURES,
    PASS,
    REFUSED,
    VERDICTS,
    Case,
    Executor,
    Verdict,
    judge,
    read_cases,
)
from benchmarks.conformance_reasons import family_of, reason_of
from benchmarks.rows import Row, RowMaker, machine_facts
from tvmquant.errors import DataError
from tvmquant.progress import Stage

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

# Of one case; most take milliseconds, the first one loads TVM.
TIMEOUT_SECONDS = 120
# Operators that a line of the table of reasons names.
LISTED = 5


def run(*, stage: Stage, only: str = "", executor: str = "simulator") -> list[Row]:
    """Import and compute node tests of ONNX, in a process that may die without harm.

    Parameters
    ----------
    stage : callable
        Called with the name of each stage; see `tvmquant.progress.Stage`.
    only : str
        Regular expression that names of tests match somewhere.
    executor : str
        What computes the float graph, one of `conformance_cases.EXECUTORS`.

    Returns
    -------
    list of Row
        For each test its ``seconds``, ``verdict`` (one of `conformance_cases.VERDICTS`), the
        ``family`` of its operator, whether its operands were ``bound`` as constants, the ``reason``
        of a refusal, and the ``message``.

    Raises
    ------
    DataError
        When ``only`` is no regular expression or matches no test, or there is no such executor.
    """
    if executor not in EXECUTORS:
        raise DataError(f"--executor {executor!r}: expected one of {', '.join(EXECUTORS)}")
    try:
        re.compile(only)
    except re.error as error:
        raise DataError(f"--only {only!r} is no regular expression: {error}") from None
    with stage("read node tests"):
        cases = read_cases(only)
    if not cases:
        raise DataError(f"--only {only!r} matches no node test; they are called test_OPERATOR_...")
    make = RowMaker("conformance", 1, machine_facts())
    rows = []
    with stage("judge node tests") as progress, Judge(EXECUTORS[executor]) as worker:
        for done, case in enumerate(cases):
            progress(done, len(cases))
            start = time.perf_counter()
            verdict = worker.judge(case)
            seconds = time.perf_counter() - start
            rows.append(make(
                case.name, executor, "seconds", seconds, "s", operator=case.operator,
                family=family_of(case.operator), verdict=verdict.kind, bound=verdict.bound,
                reason=reason_of(verdict.message) if verdict.kind == REFUSED else "",
                message=verdict.message,
            ))  # fmt: skip
    return rows


class Judge:
    """Judge cases in a process of its own, which is replaced when it dies or hangs.

    Parameters
    ----------
    execute : callable
        See `conformance_cases.Executor`.
    timeout : float
        Seconds that a case may take.
    """

    def __init__(self, execute: Executor, timeout: float = TIMEOUT_SECONDS) -> None:
        self._execute = execute
        self._timeout = timeout
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def judge(self, case: Case) -> Verdict:
        """Return what a case showed; `CRASH` where the process died or hung."""
        if self._process is None or self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_judge_all, args=(theirs, self._execute))
            self._process.start()
            theirs.close()
        with contextlib.suppress(EOFError, OSError):
            self._pipe.send(case)
            if not self._pipe.poll(self._timeout):
                self._end()
                return Verdict(CRASH, f"took more than {self._timeout:g} s")
            verdict: Verdict = self._pipe.recv()
            return verdict
        self._process.join(self._timeout)
        code = self._process.exitcode
        self._end()
        return Verdict(CRASH, f"its process ended with {_ending(code)}")

    def _end(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None


def _judge_all(pipe: Connection, execute: Executor) -> None:
    """Judge what comes through a pipe until it is closed."""
    warnings.simplefilter("ignore")  # numpy's, of the infinities that tests are about
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(judge(pipe.recv(), execute))


def _ending(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def print_summary(rows: Sequence[Row]) -> None:
    """Print verdicts by family of operators, refusals by reason, and every failure."""
    from tvmquant.cli.output import make_table, print_tables

    families = defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    lines = [[name, *_counts(members)] for name, members in sorted(families.items())]
    headings = ["operators", "tests>", "pass>", "of them with constants>"]
    headings += [f"{kind}>" for kind in VERDICTS if kind != PASS]
    lines.append(["all", *_counts(rows)])
    print_tables(
        make_table("node tests of ONNX by what they test", headings, lines),
        make_table("refused, by reason", ["reason", "tests>", "operators"], [*_reasons(rows)]),
    )
    failures = [row for row in rows if row["verdict"] in FAILURES]
    if failures:
        cells = [[row["verdict"], row["model"], row["message"]] for row in failures]
        print_tables(make_table("to be mended", ["verdict", "test", "message"], cells))


def failed(rows: Iterable[Row]) -> bool:
    """Whether a test was computed wrongly, or ended in anything but an error of tvmquant's."""
    return any(row["verdict"] in FAILURES for row in rows)


def _counts(rows: Sequence[Row]) -> list[int]:
    kinds = Counter(row["verdict"] for row in rows)
    bound = sum(1 for row in rows if row["verdict"] == PASS and row["bound"])
    return [len(rows), kinds[PASS], bound, *(kinds[k] for k in VERDICTS if k != PASS)]


def _reasons(rows: Iterable[Row]) -> Iterator[list[Any]]:
    """Yield each reason, how many tests it refuses, and of which operators, most frequent first."""
    operators: dict[Any, Counter[Any]] = defaultdict(Counter)
    for row in rows:
        if row["verdict"] == REFUSED:
            operators[row["reason"]][row["operator"]] += 1
    for reason, found in sorted(operators.items(), key=lambda item: -item[1].total()):
        names = [f"{name} {count}" for name, count in found.most_common(LISTED)]
        rest = [f"{len(found) - LISTED} more"] if len(found) > LISTED else []
        yield [reason, found.total(), ", ".join([*names, *rest])]
