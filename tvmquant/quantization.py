"""From a float graph to an integer graph: calibrate, then quantize."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.layers import Layer, is_quantized, quantizable_layers
from tvmquant.levels import annotated
from tvmquant.passes import pipeline
from tvmquant.passes.split_residual_width import RESIDUAL

if TYPE_CHECKING:
    from tvmquant.calibration import Calibration
    from tvmquant.formats import Format
    from tvmquant.graph import Graph
    from tvmquant.progress import Progress
    from tvmquant.reconstructed import Reconstructed


def calibrate(
    graph: Graph,
    data: Any,
    *,
    method: str = "mse",
    limit: int | None = None,
    batch_size: int = 16,
    activation_scheme: str = "asymmetric",
    fold_batch_norm: bool = True,
    progress: Progress | None = None,
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
        ``asymmetric``, ``symmetric``, ``auto`` or ``unsigned``; see
        `tvmquant.passes.annotate_quantization.AnnotateQuantization`.
    fold_batch_norm : bool
        Otherwise normalizations stay, for training: `apply_calibration` is to be asked likewise.
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

    return run(
        annotated(graph, activation_scheme, fold_batch_norm=fold_batch_norm), data, method=method,
        limit=limit, batch_size=batch_size, progress=progress, **options,
    )  # fmt: skip


def quantize(
    graph: Graph,
    calibration: Calibration | None = None,
    *,
    choices: Mapping[str, BitChoice] | None = None,
    residual_bits: int | None = None,
    activation_scheme: str = "asymmetric",
    weight_method: str = "mse",
    strict: bool = False,
    bound_pairs: bool = True,
    correct_bias: bool = True,
    dynamic: bool = False,
    reconstruction: Reconstructed | None = None,
) -> Graph:
    """Turn a float graph into integers.

    Parameters
    ----------
    graph : Graph
        Level L0, the one that was calibrated.
    calibration : Calibration, optional
        From `calibrate` with the same activation scheme. A model that is quantized already (QDQ)
        needs none: its own scales are kept exactly, and what has none stays float. With one, that
        is quantized too.
    choices : mapping of str to BitChoice, optional
        Bit widths by layer (`tvmquant.layers.quantizable_layers`); w8a8 where not named.
    residual_bits : int, optional
        Of what a residual connection shares with a layer of fewer bits, which then rounds it once
        more; by default both read it as the layer does.
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
        `tvmquant.compile_onnx`, which knows the target, turns it on where that needs it.
    correct_bias : bool
        Take out of each bias what rounding the weights adds to the layer's mean output.
    dynamic : bool
        Let layers that would stay float (without a calibration: all whose input the model brings no
        scale for) round their input by its range, found at run time, and compute in integers. What
        lies between them stays float. Layers that the model quantizes so are computed so anyway.
    reconstruction : Reconstructed, optional
        From `tvmquant.reconstruct` with the same calibration and options: the integers of weights.
        Biases are then not corrected.

    Returns
    -------
    Graph
        Level L2: run it with `tvmquant.simulate`, compile it with `tvmquant.build`.

    Raises
    ------
    QuantizationError
        If there is no calibration, the model is not quantized already and shall not be quantized
        dynamically; if residuals have no width of 2 to 8 bits; if the calibration is of
        another model, a layer cannot be computed in integers (strict), an
        accumulator may overflow, or a choice names no layer, is none of the layer's, or contradicts
        that of a tied layer; names the layer.
    """
    calibrated = apply_calibration(
        graph, calibration, choices=choices, residual_bits=residual_bits,
        activation_scheme=activation_scheme, weight_method=weight_method,
        bound_pairs=bound_pairs, correct_bias=correct_bias, dynamic=dynamic,
        reconstruction=reconstruction,
    )  # fmt: skip
    module = pipeline.integerize(calibrated.module, strict=strict)
    return calibrated.with_module(module, "L2")


def apply_calibration(
    graph: Graph,
    calibration: Calibration | None,
    *,
    choices: Mapping[str, BitChoice] | None = None,
    residual_bits: int | None = None,
    activation_scheme: str = "asymmetric",
    weight_method: str = "mse",
    bound_pairs: bool = True,
    correct_bias: bool = True,
    fold_batch_norm: bool = True,
    dynamic: bool = False,
    reconstruction: Reconstructed | None = None,
) -> Graph:
    """Annotate a float graph with bit widths, scales and zero points: what the torch twin runs.

    It is the network that `quantize` rounds: nothing is left to choose. Parameters and errors are
    those of `quantize`; the result has level L1. Without ``fold_batch_norm`` normalizations stay
    as they are, for training; the calibration is to be made likewise.
    """
    network = annotated(
        graph, activation_scheme, fold_batch_norm=fold_batch_norm,
        calibrates=calibration is not None, dynamic=dynamic,
    )  # fmt: skip
    wanted = dict(choices or {})
    corrects = correct_bias and reconstruction is None
    activations = activation_formats(quantizable_layers(network), wanted)
    chosen: dict[str, Any] = {"ranges": {}}
    if calibration is not None:
        calibration.check_model(network)
        widths = {name: held.bits for name, held in activations.items()}
        wide = calibration.ranges()
        chosen = {
            "ranges": calibration.ranges(widths)
            | {f"{name}{RESIDUAL}": ends for name, ends in wide.items()},
            "factors": calibration.factors(),
            "input_means": calibration.input_means if corrects else None,
            "input_powers": calibration.input_powers,
        }
    elif not dynamic and not is_quantized(graph):
        raise QuantizationError(
            f"the model {graph.name!r} brings no scales for its activations; calibrate it with "
            "data, or let ranges be found at run time (dynamic=True)"
        )
    module = pipeline.apply_calibration(
        network.module, weights={name: choice.weight for name, choice in wanted.items()},
        activations=activations, residual_bits=residual_bits, weight_method=weight_method,
        bound_pairs=bound_pairs, **chosen,
    )  # fmt: skip
    calibrated = network.with_module(module)
    if reconstruction is None:
        return calibrated
    reconstruction.check(graph)
    return reconstruction.apply(calibrated)


def activation_formats(
    layers: Sequence[Layer], choices: Mapping[str, BitChoice]
) -> dict[str, Format]:
    """Return the format of every activation that a layer reads, by the id of its fake_quant.

    Raises
    ------
    QuantizationError
        When a choice names no layer, is none of the layer's, or tied layers differ.
    """
    known = {layer.id: layer for layer in layers}
    if unknown := [name for name in choices if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise QuantizationError(f"the model has no layer {unknown[0]!r}{hint}")
    formats: dict[str, Format] = {}
    owner: dict[str, Layer] = {}
    for layer in layers:
        choice = choices.get(layer.id, layer.usual)
        if not layer.allows(choice):
            raise QuantizationError(
                f"layer {layer.id!r} ({layer.op}) cannot compute {choice}; expected "
                f"{layer.expected}"
            )
        first = owner.setdefault(layer.group, layer)
        other = choices.get(first.id, first.usual)
        if other.activation != choice.activation:
            raise QuantizationError(
                f"layers {first.id!r} ({other}) and {layer.id!r} ({choice}) read the same "
                "activation; give both the same activation width"
            )
        formats.update(dict.fromkeys(layer.edges, choice.activation))
    return formats
