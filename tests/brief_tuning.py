"""Tune without waiting: processes that are started once, and timing for a moment only."""

import atexit
import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import pytest

from tvmquant.machine import Machine


class _Lent:
    """A builder or runner that outlives the tuner which would close it."""

    def __init__(self, lender: Any) -> None:
        self._lender = lender
        atexit.register(lender.close)

    def __getattr__(self, name: str) -> Any:
        return (lambda: None) if name == "close" else getattr(self._lender, name)


@functools.cache
def _builder(machine: Machine) -> _Lent:
    from tvmquant.tuning.measure import KernelBuilder

    return _Lent(KernelBuilder(machine))


@functools.cache
def _runner(threads: int) -> _Lent:
    from tvmquant.tuning.measure import HostRunner

    return _Lent(HostRunner(threads))


# the package's name for the function is that of the module
def _modules() -> list[Any]:
    return [importlib.import_module(f"tvmquant.tuning.{name}") for name in ("tuner", "tune")]


@contextlib.contextmanager
def brief_measuring() -> Iterator[None]:
    """Measure each candidate of a tuner for a moment, and the best ones once more.

    Tests do not ask how long anything takes.
    """
    from tvm.s_tir.meta_schedule.runner import EvaluatorConfig

    from tvmquant.tuning import measure

    tuner, _ = _modules()
    moment = EvaluatorConfig(number=1, repeat=1, min_repeat_ms=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_EVALUATION", moment)
        for name in ("CONFIRMATIONS", "MOST_CONFIRMATIONS"):
            patch.setattr(tuner, name, 2)
        yield


@contextlib.contextmanager
def brief_tuning() -> Iterator[None]:
    """Measure as briefly, by processes that are there already.

    Starting its three processes takes a tuner longer than the few kernels of a test.
    """
    tuner, tune = _modules()
    with brief_measuring(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuner, "KernelBuilder", _builder)
        for module in (tuner, tune):
            patch.setattr(module, "HostRunner", _runner)
        yield
