"""Estimate the perturbation Omega of every layer under every bit choice, on the torch twin.

With ``l`` the loss of an item (`tvmquant.sensitivity.loss`), E the mean over items,
``dW = Q(W) - W`` of a layer's weight, ``a`` the activation that it reads and ``da = Q(a) - a``,
both of one item:

    hessian   Omega = tr(H_W) / |W| ||dW||^2 + tr(H_a) / |a| E ||da||^2                         (1)
              H_W = E d2l/dW2, H_a = E d2l/da2
    fisher    Omega = 1/2 sum_i F_i dW_i^2 + 1/2 E sum_i f_i da_i^2                             (2)
              F = E (dl/dW_i)^2, f = (dl/da_i)^2
    output    Omega = E l(only W quantized) - E l + E l(only a quantized) - E l, each >= 0      (3)
    random    Omega = a seeded number times 4^-bits: a control

**Hessian.** With z the output, J its derivative with respect to a tensor, S = d2l/dz2 >= 0:

    H = E J' S J + R,   R = E sum_k (dl/dz_k) d2z_k                                             (4)

and with ``L L' = S`` and entries of r drawn from {-1, 1} (Hutchinson), ``E |J' L r|^2`` is the
trace of the first part: one backward computation serves all tensors and all items of a batch, whose
r are independent. R is zero without labels, where dl/dz = 0, and its blocks are zero in networks
that are piecewise linear, since z is linear in each tensor alone. Else its traces are ``E v' R v``
of Hessian-vector products with entries of v from {-1, 1}, one tensor at a time.

Rejected: one product with H for all tensors jointly. Its parts ``v_i' (H v)_i`` are unbiased, but
hold ``v_i' H_ij v_j`` of all other tensors. Of ResNet-20, batches of 16, a sample's standard
deviation was 0.9 to 22 times the trace of weights and 6 to 56 times that of activations, against
0.6 to 1.0 times for |J' L r|^2: for 5 %, up to a million products instead of 400.

**One bit.** A quadratic model means nothing where a step is as wide as the tensor's range: the
terms of formats of one bit are those of (3), with ``hessian`` twice, as (1) is twice the growth
that the second derivatives foretell.

**Fisher.** Without labels the diagonal is that of ``E J' S J``, the Fisher information of what the
network predicts (no label need be drawn: L r replaces the gradient at one). With labels it is the
empirical one, of each item's gradient.

Probes are drawn until the standard error of every trace, given these data, is below ``tolerance``
times the trace or times 1 % of the greatest one, or there are ``max_probes`` for each item. Traces
below zero, which only R can cause, count as zero. The term of an activation is shared out equally
among the layers that are tied by it, so that a sum over layers counts it once. Memory does not
depend on the number of items.

References: Dong et al., HAWQ-V2, 2020, eq. 7 and 9; Yao et al., HAWQ-V3, 2021; Theis et al., Faster
gaze prediction with dense networks and Fisher pruning, 2018, eq. 5; Schraudolph, Fast curvature
matrix-vector products, 2002 (equation 4).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Final

from tvmquant.bit_choice import DEFAULT_CHOICES, BitChoice
from tvmquant.data import Dataset, open_data
from tvmquant.errors import DataError, SensitivityError
from tvmquant.progress import Progress
from tvmquant.quantizer import check_scheme, check_weight_method
from tvmquant.sensitivity.curvature import PROBES, Fisher, Hessian
from tvmquant.sensitivity.direct import Control, OutputGrowth
from tvmquant.sensitivity.estimator import Estimator, Settings
from tvmquant.sensitivity.loss import check_loss
from tvmquant.sensitivity.methods import check_method
from tvmquant.sensitivity.quantizers import Rounder, make_quantizers
from tvmquant.sensitivity.record import Sensitivity
from tvmquant.stage_cache import taken_up

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.graph import Graph

_LOG = logging.getLogger(__name__)

BATCH_SIZE: Final = 8
MAX_PROBES: Final = 64

_ESTIMATORS: Final[Mapping[str, type[Estimator]]] = {
    "hessian": Hessian,
    "fisher": Fisher,
    "output": OutputGrowth,
    "random": Control,
}


def estimate_sensitivity(
    graph: Graph,
    data: Any,
    calibration: Calibration,
    *,
    method: str = "hessian",
    choices: Sequence[BitChoice] = DEFAULT_CHOICES,
    activation_scheme: str = "asymmetric",
    weight_method: str = "mse",
    bound_pairs: bool = True,
    labels: bool = False,
    loss: str = "auto",
    tolerance: float = 0.05,
    max_probes: int = MAX_PROBES,
    limit: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    rounder: Rounder | None = None,
) -> Sensitivity:
    """Estimate what every layer's choices cost (see the module's description).

    Parameters
    ----------
    graph : Graph
        Level L0, of one input.
    data : Dataset, or what `open_data` reads without a recipe
        Data that can be read only once get one pass (`PROBES` probes).
    calibration : Calibration
        Of the graph.
    method : str
        One of `tvmquant.sensitivity.METHODS`.
    choices : sequence of BitChoice
        Besides w8a8.
    activation_scheme, weight_method, bound_pairs
        As of `tvmquant.quantize`; the scheme is the one that was calibrated with.
    labels : bool
        Use the labels of the data, which must be those of the classes of the network's first
        output, (N, C); other outputs have no labels. Otherwise the float network's own predictions
        stand for them.
    loss : str
        Of every output: ``cross_entropy``, ``binary_cross_entropy`` or ``squared_error``; ``auto``
        chooses for each by its shape and last operator, see `tvmquant.sensitivity.loss`.
    tolerance : float
        Relative standard error of the traces (``hessian`` and ``fisher``), > 0.
    max_probes : int
        Random vectors for each item, after which the traces are taken as they are; >= `PROBES`.
    limit : int, optional
        Use only the first so many items.
    batch_size : int
        Items computed at once, > 0.
    seed : int
        Of probes.
    cache : path, optional
        Folder: an estimate of the same model, data and settings is read from there, or kept there.
    progress : callable (done, total), optional
        Receives the items done, counted anew in each pass, and the items expected, None where the
        length of the data is not known; first of all the weights that were rounded anew.
    rounder : Rounder, optional
        What rounds weights instead of `quantize` (`tvmquant.training.reconstruct.LayerRounder`).

    Raises
    ------
    SensitivityError
        When a setting is wrong, or a result is NaN or infinite; names the layer or the tensor.
    QuantizationError
        When the scheme or the weight method is unknown, or the calibration is of another one.
    DataError
        When the data are missing, empty or do not fit the model.
    """
    check_method(method)
    check_loss(loss)
    check_scheme(activation_scheme)
    check_weight_method(weight_method)
    for name, value, least in (("max_probes", max_probes, PROBES), ("batch_size", batch_size, 1)):
        if type(value) is not int or value < least:
            raise SensitivityError(f"{name} = {value!r}; expected an integer >= {least}")
    if not 0.0 < tolerance < float("inf"):
        raise SensitivityError(f"tolerance = {tolerance}; expected more than 0")
    if data is None:
        raise DataError("sensitivity needs data: some of the images that calibrate the model")
    dataset = (
        data
        if isinstance(data, Dataset)
        else open_data(data, inputs=graph.item_inputs(), batch_size=batch_size)
    )
    if limit is not None:
        dataset = dataset.subset(limit=limit)
    if (fixed_batch := graph.fixed_batch()) is not None:
        dataset = dataset.rebatched(fixed_batch)
    fingerprint = dataset.fingerprint()
    settings = Settings(labels, loss, tolerance, max_probes, batch_size, seed, fixed_batch)

    def estimate() -> Sensitivity:
        quantizers = make_quantizers(
            graph, calibration, choices, activation_scheme=activation_scheme,
            weight_method=weight_method, bound_pairs=bound_pairs, rounder=rounder,
            progress=progress,
        )  # fmt: skip
        estimator = _ESTIMATORS[method](
            quantizers, dataset, fingerprint is not None, settings, progress
        )
        estimator.run()
        found = estimator.result(method, graph.fingerprint(), fingerprint)
        if not found.converged and found.relative_error is not None:
            _LOG.warning(
                "the standard error of the traces is %.1f %% after %d probes of %d items, not "
                "%.1f %%; use more images or a greater max_probes",
                100.0 * found.relative_error, found.probes, found.count, 100.0 * tolerance,
            )  # fmt: skip
        return found

    names = sorted(str(choice) for choice in choices)
    follows_from = [
        graph.fingerprint(), fingerprint, calibration.model_dump_json(), method, names,
        activation_scheme, weight_method, bound_pairs, *astuple(settings),
        *([] if rounder is None else rounder.settings),
    ]  # fmt: skip
    folder = cache if fingerprint is not None else None
    return taken_up(folder, "sensitivity", Sensitivity, follows_from, estimate)[0]
