"""Write a PyTorch network as ONNX through either of PyTorch's two exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from tvmquant.atomic_write import atomic_write

Style = Literal["torchscript", "dynamo"]

# The dynamo exporter writes 18 and converts upwards; its conversion downwards fails on reductions,
# whose axes became inputs in 18.
_OPSETS: dict[str, range] = {"torchscript": range(11, 22), "dynamo": range(18, 22)}


def export_onnx(
    network: nn.Module,
    path: str | Path,
    shape: tuple[int, int, int],
    *,
    style: Style = "torchscript",
    opset: int = 17,
    fold_bn: bool = True,
    dynamic_batch: bool = True,
) -> Path:
    """Write a network as one ONNX file, input `image` and output `logits`.

    Parameters
    ----------
    network : torch.nn.Module
        In eval mode, of one input and one output.
    path : str or pathlib.Path
        The file to write. It appears complete or not at all.
    shape : (int, int, int)
        Channels, height and width of an image.
    style : {"torchscript", "dynamo"}
        Which exporter; they spell the same network differently.
    opset : int
        11 to 21 for "torchscript", 18 to 21 for "dynamo".
    fold_bn : bool
        Fold a normalization into the convolution before it, where there is one. False keeps every
        BatchNormalization node.
    dynamic_batch : bool
        Leave the batch symbolic (`batch`); False fixes it to 1.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    ValueError
        If the style is unknown or does not write the opset.
    """
    if style not in _OPSETS:
        raise ValueError(f"unknown style {style!r}; expected one of {', '.join(get_args(Style))}")
    opsets = _OPSETS[style]
    if opset not in opsets:
        raise ValueError(
            f"the {style} exporter does not write opset {opset}; expected {opsets[0]} to "
            f"{opsets[-1]}, or another style"
        )
    write = _write_torchscript if style == "torchscript" else _write_dynamo
    # two images, because a symbolic batch must not be traced as 1
    image = torch.zeros(2 if dynamic_batch else 1, *shape)
    with _without_exporter_chatter():
        model = write(network, image, opset=opset, fold_bn=fold_bn, dynamic_batch=dynamic_batch)
    path = Path(path)
    with atomic_write(path) as part:
        part.write_bytes(model)
    return path


@contextlib.contextmanager
def _without_exporter_chatter() -> Iterator[None]:
    """Hide deprecations inside PyTorch and its note that torchvision is absent."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _write_torchscript(
    network: nn.Module, image: torch.Tensor, *, opset: int, fold_bn: bool, dynamic_batch: bool
) -> bytes:
    # only this mode folds normalizations; the other leaves a network in eval mode as it is
    mode = torch.onnx.TrainingMode.EVAL if fold_bn else torch.onnx.TrainingMode.PRESERVE
    buffer = io.BytesIO()
    torch.onnx.export(
        network,
        (image,),
        buffer,
        dynamo=False,
        opset_version=opset,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}} if dynamic_batch else None,
        training=mode,
        do_constant_folding=fold_bn,
    )
    return buffer.getvalue()


def _write_dynamo(
    network: nn.Module, image: torch.Tensor, *, opset: int, fold_bn: bool, dynamic_batch: bool
) -> bytes:
    program = torch.onnx.export(
        network,
        (image,),
        dynamo=True,
        opset_version=opset,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic_batch else None,
        verbose=False,
        optimize=fold_bn,
    )
    if not fold_bn:
        # what `optimize` does besides, it fuses normalizations
        from onnxscript import optimizer

        optimizer.inline(program.model)
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    return program.model_proto.SerializeToString()
