"""The node tests of ONNX, and what one of them shows: right, refused, wrong, or a foreign error.

ONNX feeds its node tests everything at run time, shapes and axes too, which exporters store in the
file. A test that is refused as it stands is therefore tried again with all inputs but the first
stored as constants.
"""

from __future__ import annotations

import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.conformance_reasons import INFINITE, reason_of
from tvmquant.errors import TVMQuantError

PASS, REFUSED, WRONG, FOREIGN, CRASH = "pass", "refused", "WRONG", "FOREIGN", "CRASH"
VERDICTS = (PASS, REFUSED, WRONG, FOREIGN, CRASH)
FAILURES = (WRONG, FOREIGN, CRASH)

# Floating-point numbers of these types are float32 in a graph, by what each rounds to.
_FLOATS = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 0.0, "float64": 0.0}
# Of a foreign error; TVM's print whole modules.
MESSAGE_LENGTH = 300
_EXPANDED = re.compile(r"_expanded(_ver\d+)?$")

Array = NDArray[Any]
# Computes the outputs of a graph from its inputs.
Executor = Callable[[Any, Sequence[Array]], Sequence[Array]]


@dataclass(frozen=True)
class Case:
    """A node test.

    Attributes
    ----------
    name : str
    operator : str
        What is tested; of a test that spells an operator out in others, that operator.
    model : onnx.ModelProto
    inputs : mapping
        Values by name: arrays, and what is no tensor as ONNX has it (lists, None).
    outputs : sequence
        Expected values, likewise.
    rtol, atol : float
    """

    name: str
    operator: str
    model: onnx.ModelProto
    inputs: Mapping[str, Any]
    outputs: Sequence[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Verdict:
    """What a case showed.

    Attributes
    ----------
    kind : str
        One of `VERDICTS`.
    message : str
        Of the error, or how the numbers differ; empty where they do not.
    bound : bool
        Whether the inputs but the first were stored as constants.
    """

    kind: str
    message: str = ""
    bound: bool = False


def read_cases(only: str = "") -> list[Case]:
    """Return the node tests of the installed onnx whose names match a regular expression."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests' own arithmetic overflows on purpose
        tests = {test.name: test for test in load_model_tests(kind="node")}
    cases = []
    for name, test in tests.items():
        if not re.search(only, name):
            continue
        whole = tests.get(_EXPANDED.sub("", name), test)
        inputs, outputs = test.data_sets[0]
        names = [value.name for value in test.model.graph.input]
        feeds = {key: _value(x) for key, x in zip(names, inputs, strict=False)}
        expected = [_value(x) for x in outputs]
        operator = whole.model.graph.node[-1].op_type
        cases.append(Case(name, operator, test.model, feeds, expected, test.rtol, test.atol))
    return cases


def _value(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def judge(case: Case, execute: Executor) -> Verdict:
    """Import a case, compute it, and compare."""
    verdict = _attempt(case, case.model, execute)
    bound = _with_constants(case)
    if verdict.kind != REFUSED or bound is None:
        return verdict
    second = _attempt(case, bound, execute)
    if second.kind == REFUSED and reason_of(second.message) == INFINITE:
        return verdict  # a test of infinities, which nobody stores
    return replace(second, bound=True)


def _attempt(case: Case, model: onnx.ModelProto, execute: Executor) -> Verdict:
    from tvmquant.frontend import load_onnx

    try:
        graph = load_onnx(model, name=case.name)
        feeds = [_fed(case.inputs[name], dtype) for name, _, dtype in graph.inputs]
        outputs = execute(graph, feeds)
    except TVMQuantError as error:
        return Verdict(REFUSED, str(error))
    except Exception as error:  # what this looks for
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(f"{type(error).__name__}: {error}".split())[:MESSAGE_LENGTH]
        return Verdict(FOREIGN, f"{text} ({Path(place.filename).name}:{place.lineno})")
    difference = compare(outputs, case.outputs, case.rtol, case.atol)
    return Verdict(WRONG, difference) if difference else Verdict(PASS)


def _fed(value: Any, dtype: str) -> Array:
    array = np.asarray(value)
    return array.astype(dtype) if array.dtype.name in _FLOATS else array


def _with_constants(case: Case) -> onnx.ModelProto | None:
    """Return the model with its tensors but the first stored in it; None where there are none."""
    later = list(case.inputs.items())[1:]
    tensors = {name: value for name, value in later if isinstance(value, np.ndarray)}
    if not tensors:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()
    )
    return model


def compare(found: Sequence[Array], expected: Sequence[Any], rtol: float, atol: float) -> str:
    """Return how outputs differ from what is expected, ``""`` if they do not.

    Integers must be equal. Floating-point numbers of any width are float32 in a graph; where the
    expected ones are narrower, two units of their last place count as equal.
    """
    if len(found) != len(expected):
        return f"{len(found)} outputs, expected {len(expected)}"
    for index, (array, value) in enumerate(zip(found, expected, strict=True)):
        wanted = np.asarray(value)
        is_float = wanted.dtype.name in _FLOATS
        dtype = "float32" if is_float else wanted.dtype.name
        if (array.shape, array.dtype.name) != (wanted.shape, dtype):
            return (
                f"output {index} is {array.dtype} of shape {array.shape}, expected {dtype} of "
                f"shape {wanted.shape}"
            )
        if not is_float:
            if not np.array_equal(array, wanted):
                return f"output {index} has {np.count_nonzero(array != wanted)} other integers"
            continue
        tolerance = max(rtol, 2 * _FLOATS[wanted.dtype.name])
        wanted = wanted.astype(np.float64)
        if not np.allclose(array, wanted, rtol=tolerance, atol=atol, equal_nan=True):
            with np.errstate(invalid="ignore"):
                worst = np.nanmax(np.abs(array - wanted))
            return f"output {index} differs by up to {worst:.3g}"
    return ""


def simulated(graph: Any, inputs: Sequence[Array]) -> list[Array]:
    """Compute with the numpy simulator."""
    from tvmquant.simulator import simulate

    return list(simulate(_shipped(graph), *inputs))


def _shipped(graph: Any) -> Any:
    """Return the integers that a graph becomes which quantizes itself, other graphs unchanged."""
    import tvmquant
    from tvmquant.passes.pipeline import has_integer_operators

    return tvmquant.quantize(graph) if has_integer_operators(graph.module) else graph


def in_torch(graph: Any, inputs: Sequence[Array]) -> list[Array]:
    """Compute with the torch twin."""
    import torch

    from tvmquant.twin import Twin

    with torch.inference_mode():
        found = Twin(graph.module)(*(torch.from_numpy(np.array(array)) for array in inputs))
    tensors = found if isinstance(found, tuple) else (found,)
    # integers that a model quantizes are floats in torch
    types = [dtype for _, _, dtype in graph.outputs]
    return [x.numpy().astype(dtype) for x, dtype in zip(tensors, types, strict=True)]


def in_library(graph: Any, inputs: Sequence[Array]) -> list[Array]:
    """Build a float library for this machine and run it."""
    import tvmquant

    batch = next((len(x) for x, (_, shape, _) in zip(inputs, graph.inputs, strict=True)
                  if shape and shape[0] is None), 1)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tvmquant-") as folder:
        out = Path(folder, "library")
        tvmquant.build(_shipped(graph), out=out, threads=1, batch=batch)
        found = tvmquant.load(out)(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


EXECUTORS: dict[str, Executor] = {
    "simulator": simulated,
    "twin": in_torch,
    "library": in_library,
}
