"""Random-weight networks of well-known architectures, and their export to ONNX.

The definitions are this project's own and follow the publications layer by layer. The weights are
random, but the activations behave (see `benchmarks.models.initialise`), so what is measured on
them, latency and quantization error, means something, while top-1 accuracy does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.models import unet
from benchmarks.models.densenet import DenseNet121
from benchmarks.models.efficientnet_lite import EfficientNetLite0
from benchmarks.models.exporter import Style, export_onnx
from benchmarks.models.inception import InceptionV3
from benchmarks.models.initialise import randomise, synthetic_images
from benchmarks.models.mobilenetv1 import MobileNetV1
from benchmarks.models.mobilenetv2 import MobileNetV2
from benchmarks.models.mobilenetv3 import MobileNetV3Small
from benchmarks.models.quicknet import QuickNetSmall
from benchmarks.models.reactnet import reactnet18, reactnet20, reactnet_a
from benchmarks.models.resnet import bwn_resnet18, resnet18, resnet50
from benchmarks.models.xnor_resnet import XNORResNet18

__all__ = ["architecture", "build", "export", "input_shape", "names", "synthetic_images"]


@dataclasses.dataclass(frozen=True)
class _Model:
    """How to define a network, and the images it is meant for.

    Attributes
    ----------
    define : callable
        Returns the network for a number of classes.
    image_size : int
        Height and width in the publication.
    smallest : int
        The least height and width that leaves something to pool.
    multiple : int
        What height and width must be a multiple of.
    """

    define: Callable[[int], nn.Module]
    image_size: int = 224
    smallest: int = 32
    multiple: int = 1


_MODELS = {
    "resnet18": _Model(resnet18),
    "resnet50": _Model(resnet50),
    "inceptionv3": _Model(InceptionV3, image_size=299, smallest=75),
    "mobilenetv1": _Model(MobileNetV1),
    "mobilenetv2": _Model(MobileNetV2),
    "efficientnet-lite0": _Model(EfficientNetLite0),
    "mobilenetv3-small": _Model(MobileNetV3Small),
    "densenet121": _Model(DenseNet121),
    "unet": _Model(unet.unet, smallest=16, multiple=8),
    "unet-resize": _Model(unet.unet_resize, smallest=16, multiple=8),
    "reactnet-a": _Model(reactnet_a, multiple=32),
    "reactnet18": _Model(reactnet18, multiple=32),
    "reactnet20-cifar": _Model(reactnet20, image_size=32, smallest=16, multiple=4),
    "xnor-resnet18": _Model(XNORResNet18),
    "bwn-resnet18": _Model(bwn_resnet18),
    "quicknet-small": _Model(QuickNetSmall, smallest=96),
}


def names() -> tuple[str, ...]:
    """Return the names that `build` and `export` know."""
    return tuple(_MODELS)


def input_shape(name: str, image_size: int | None = None) -> tuple[int, int, int]:
    """Return the channels, height and width of one input image.

    Parameters
    ----------
    name : str
        One of `names`.
    image_size : int, optional
        Height and width; those of the publication by default.

    Raises
    ------
    ValueError
        If there is no such model, or it cannot take images of that size.
    """
    model = _find(name)
    size = model.image_size if image_size is None else image_size
    if size < model.smallest or size % model.multiple:
        of = f", a multiple of {model.multiple}" if model.multiple > 1 else ""
        raise ValueError(f"{name}: image_size = {size}; expected at least {model.smallest}{of}")
    return (3, size, size)


def architecture(name: str, num_classes: int = 1000) -> nn.Module:
    """Define a network with the weights that torch gives it.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    return _find(name).define(num_classes)


def build(
    name: str, *, seed: int = 0, image_size: int | None = None, num_classes: int = 1000
) -> nn.Module:
    """Define a network and give it random weights and matching statistics.

    Parameters
    ----------
    name : str
        One of `names`.
    seed : int
        Equal seeds give equal weights, on the same machine and number of threads.
    image_size : int, optional
        Height and width of the images that the statistics come from; those of the publication by
        default. Other sizes run too.
    num_classes : int
        Width of the output, or its channels where the output is a map.

    Returns
    -------
    torch.nn.Module
        In eval mode, without gradients. Takes images (N, 3, H, W) in float32 and returns logits
        (N, num_classes), or (N, num_classes, H, W) for the U-Nets.

    Raises
    ------
    ValueError
        If there is no such model, or it cannot take images of that size.
    """
    shape = input_shape(name, image_size)
    # layers draw weights as they are made, from the caller's random state unless it is set aside
    with torch.random.fork_rng(devices=[]):
        network = _find(name).define(num_classes)
    randomise(network, shape, seed=seed)
    return network


def export(
    name: str,
    path: str | Path,
    *,
    style: Style = "torchscript",
    opset: int = 17,
    image_size: int | None = None,
    fold_bn: bool = True,
    dynamic_batch: bool = True,
    seed: int = 0,
    num_classes: int = 1000,
) -> Path:
    """Build a network and write it as ONNX, input `image` and output `logits`.

    Parameters
    ----------
    name, seed, image_size, num_classes
        As for `build`.
    path : str or pathlib.Path
        The file to write. It appears complete or not at all.
    style, opset, fold_bn, dynamic_batch
        As for `benchmarks.models.exporter.export_onnx`.

    Returns
    -------
    pathlib.Path
        The file written.

    Raises
    ------
    ValueError
        If the model, image size, style or opset cannot be had; nothing is written.
    """
    network = build(name, seed=seed, image_size=image_size, num_classes=num_classes)
    return export_onnx(
        network,
        path,
        input_shape(name, image_size),
        style=style,
        opset=opset,
        fold_bn=fold_bn,
        dynamic_batch=dynamic_batch,
    )


def _find(name: str) -> _Model:
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; expected one of {', '.join(_MODELS)}")
    return _MODELS[name]
