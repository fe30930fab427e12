"""From a float graph to an integer graph: calibrate, then quantize."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvmquant.errors import QuantizationError
from tvmquant.passes import pipeline

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph


def calibrate(
    graph: Graph,
    data: Any,
    *,
    method: str = "mse",
    limit: int | None = None,
    batch_size: int = 16,
    activation_scheme: str = "asymmetric",
    progress: Callable[[int, int | None], None] | None = None,
    **options: Any,
) -> Calibration:
    """Choose the range of every activation of a float graph from sample inputs.

    Parameters
    ----------
    graph : Graph
        Level L0, from `tvmquant.load_onnx`.
    data : Dataset, array, path or iterable
        What `tvmquant.data.open_data` accepts; labels are not used.
    method : str
        Observer: ``mse``, ``minmax``, ``moving_average``, ``percentile`` or ``entropy``.
    limit : int, optional
        Use at most this many items.
    batch_size : int
        Items per step, where ``data`` does not say.
    activation_scheme : str
        ``asymmetric``, ``symmetric`` or ``auto``; see `tvmquant.passes.annotate_quantization`.
    progress : callable, optional
        Receives the items done and the total (or None).
    **options
        Of the observer, for example ``percentile=99.9``.

    Raises
    ------
    DataError, QuantizationError
        See `tvmquant.calibration.calibrate`.
    """
    from tvmquant.calibration import calibrate as run

    annotated = _annotated(graph, activation_scheme)
    return run(
        annotated, data, method=method, limit=limit, batch_size=batch_size, progress=progress,
        **options,
    )  # fmt: skip


def quantize(
    graph: Graph,
    calibration: Calibration,
    *,
    activation_scheme: str = "asymmetric",
    weight_method: str = "mse",
    strict: bool = False,
    bound_pairs: bool = True,
) -> Graph:
    """Turn a float graph into integers.

    Parameters
    ----------
    graph : Graph
        Level L0, the one that was calibrated.
    calibration : Calibration
        From `calibrate` with the same activation scheme.
    activation_scheme : str
    weight_method : str
        ``mse`` (default) or ``minmax``: how per-channel weight scales are chosen.
    strict : bool
        Raise if any operator stays float.
    bound_pairs : bool
        Round the weights of layers that can afford it so that sums of two products fit 16 bits,
        which lets AVX2 processors multiply bytes (`tvmquant.weight_pairs`). On by default, so that
        a model computes the same integers, with the same accuracy, on every processor; off, the
        weights are rounded freely and such processors multiply words. Exact in either case.

    Returns
    -------
    Graph
        Level L2: run it with `tvmquant.simulate`, compile it with `tvmquant.build`.

    Raises
    ------
    QuantizationError
        If the calibration is of another model, a layer cannot be computed in integers (strict), or
        an accumulator may overflow; names the layer.
    """
    annotated = _annotated(graph, activation_scheme)
    calibration.check_model(annotated.module)
    module = pipeline.integerize(
        annotated.module,
        calibration.ranges(),
        weight_method=weight_method,
        strict=strict,
        bound_pairs=bound_pairs,
    )
    return annotated.with_module(module, "L2")


def _annotated(graph: Graph, activation_scheme: str) -> Graph:
    if graph.level != "L0":
        raise QuantizationError(f"expected a float graph (L0), found level {graph.level}")
    module = pipeline.annotate(pipeline.canonicalize(graph.module), activation_scheme)
    return graph.with_module(module, "L1")
