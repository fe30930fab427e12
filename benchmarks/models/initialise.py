"""Random weights under which a network behaves like a trained one to a quantizer.

Freshly initialised, deep networks answer nearly the same whatever they see, and their activations
grow or shrink from layer to layer; and where a normalization precedes every rectifier they amplify
any error, so that 8 bits leave little of the logits. Here the convolutions follow He et al. (2015);
each channel's normalization has its own scale and shift and the statistics of image-like data;
shifts before activations are positive, which leaves these nearly linear, so that they pass errors
on and amplify them little, and residual branches are small beside what they are added to, those of
signs above all. The last layer is scaled so that its logits are centred over images and spread by
about `LOGIT_STD`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.models.layers import CentredBatchNorm2d, ConvBNAct, SqueezeExcitation
from tvmquant.nn import RPReLU, RSign

LOGIT_STD = 2.0
# most scales within [0.5, 2]
_GAMMA_LOG_STD = 0.3
_BETA_STD = 0.25
# a ReLU then clears about one value in six, and ReLU6 cuts off some of the largest
_BETA_BEFORE_ACTIVATION = 1.0
_RESIDUAL_GAMMA = 0.3
# smaller where branches begin with signs, which make large differences of small ones
_BINARY_RESIDUAL_GAMMA = 0.1
# of learned thresholds of signs, and of where and with which slopes rectifiers bend
_SHIFT_STD = 0.1
# a gate that hardly depends on the image keeps products of activations from running away
_GATE_GAIN = 0.3
# images that the statistics come from: few do not represent others, many take long
_PIXELS = 16 * 224 * 224
_MIN_IMAGES, _MAX_IMAGES = 16, 48
# the smallest spread of the last layer's logits that is worth scaling
_SMALLEST_STD = 1e-6


def synthetic_images(count: int, shape: tuple[int, int, int], *, seed: int) -> NDArray[np.float32]:
    """Draw image-like inputs: smooth regions, edges and texture, unlike one another.

    Noise is summed over octaves with an amplitude that falls with the spatial frequency, as it does
    in photographs; how fast it falls, brightness, contrast and tint differ between images.

    Parameters
    ----------
    count : int
        Images, at least 1.
    shape : (int, int, int)
        Channels, height and width.
    seed : int
        Equal seeds give equal images.

    Returns
    -------
    numpy.ndarray
        float32, (count, channels, height, width), within [-2.2, 2.2] (pixels in [0, 1], minus one
        half, over the 0.225 that is ImageNet's standard deviation).
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

    falloff = uniform(0.5, 0.9)
    image = torch.zeros(count, channels, height, width)
    for octave in range(1, math.ceil(math.log2(max(height, width, 2))) + 1):
        size = (min(height, 2**octave), min(width, 2**octave))
        grey = torch.randn(count, 1, *size, generator=generator)
        colour = torch.randn(count, channels, *size, generator=generator)
        noise = nn.functional.interpolate(
            grey + 0.5 * colour, (height, width), mode="bilinear", align_corners=False
        )
        image += noise * 2.0 ** (-falloff * octave)
    image -= image.mean(dim=(1, 2, 3), keepdim=True)
    image /= image.std(dim=(1, 2, 3), keepdim=True).clamp_min(_SMALLEST_STD)
    tint = 0.5 * torch.randn(count, channels, 1, 1, generator=generator)
    pixels = torch.sigmoid(image * uniform(1.0, 2.0) + uniform(-0.75, 0.75) + tint)
    return ((pixels - 0.5) / 0.225).numpy()


def randomise(network: nn.Module, shape: tuple[int, int, int], *, seed: int) -> None:
    """Give a network reproducible weights and statistics, and leave it in eval mode.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place. Its attribute `head` is the last layer, a `Linear` or `Conv2d`.
    shape : (int, int, int)
        Channels, height and width of the images it will see.
    seed : int
        Equal seeds give equal networks, and the caller's random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in network.modules():
            _randomise_layer(module)
        for module in network.modules():
            _calm(module)
        count = math.ceil(_PIXELS / (shape[1] * shape[2]))
        count = min(max(count, _MIN_IMAGES), _MAX_IMAGES)
        images = torch.from_numpy(synthetic_images(count, shape, seed=seed))
        _estimate_statistics(network, images)
        network.eval()
        _standardise_head(network, images)
    for parameter in network.parameters():
        parameter.requires_grad_(False)


def _randomise_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        # a transposed convolution's outputs sum kernel / stride as many taps as its fan says
        fan_in = module.weight[0].numel()
        if isinstance(module, nn.ConvTranspose2d):
            fan_in = module.in_channels * module.weight[0, 0].numel() // math.prod(module.stride)
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_in))
        if module.bias is not None:
            nn.init.normal_(module.bias, std=_BETA_STD)
    elif isinstance(module, RSign | RPReLU):
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter).mul_(_SHIFT_STD))
        if isinstance(module, RPReLU):  # bends there, and is the identity above
            module.gamma.sub_(_BETA_BEFORE_ACTIVATION)
            module.zeta.sub_(_BETA_BEFORE_ACTIVATION)
            module.beta.abs_()  # or a sign behind has two thresholds
    elif isinstance(module, nn.BatchNorm2d) and module.affine:
        module.weight.copy_(torch.randn_like(module.weight).mul_(_GAMMA_LOG_STD).exp_())
        mean = 0.0 if isinstance(module, CentredBatchNorm2d) else _BETA_BEFORE_ACTIVATION
        nn.init.normal_(module.bias, mean=mean, std=_BETA_STD)


def _calm(module: nn.Module) -> None:
    """Weaken what would amplify differences from layer to layer."""
    if isinstance(module, SqueezeExcitation):
        module.expand.weight.mul_(_GATE_GAIN)
    elif isinstance(module, ConvBNAct) and module.is_linear:
        module.norm.bias.sub_(_BETA_BEFORE_ACTIVATION)
    residual_norm = getattr(module, "residual_norm", None)
    if residual_norm is not None:
        signs = isinstance(residual_norm, CentredBatchNorm2d)
        residual_norm.weight.mul_(_BINARY_RESIDUAL_GAMMA if signs else _RESIDUAL_GAMMA)
    residual_convolution = getattr(module, "residual_convolution", None)
    if residual_convolution is not None:
        residual_convolution.weight.mul_(_BINARY_RESIDUAL_GAMMA)


def _estimate_statistics(network: nn.Module, images: Tensor) -> None:
    """Set the mean and variance of every normalization to those over the images."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()
    network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _standardise_head(network: nn.Module, images: Tensor) -> None:
    """Scale the last layer so that its logits have mean 0 for each class, and `LOGIT_STD`."""
    head = network.head
    logits = network(images)
    over_images = [dim for dim in range(logits.ndim) if dim != 1]
    centred = logits - logits.mean(dim=over_images, keepdim=True)
    scale = LOGIT_STD / centred.std().clamp_min(_SMALLEST_STD)
    head.bias.sub_(logits.mean(dim=over_images)).mul_(scale)
    head.weight.mul_(scale)
