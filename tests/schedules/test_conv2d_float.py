"""Float32 convolution, depthwise convolution and pooling against PyTorch in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.schedules.kernel_testing import COMPILED, EXECUTED, build, make_target, run
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d, float_window
from tvmquant.schedules.epilogue import FloatEpilogue

# (height, width, channels, outputs, kernel, strides, padding, dilation, groups)
LAYERS = {
    "3x3": (9, 11, 16, 24, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "stem": (17, 15, 3, 16, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "1x1": (7, 7, 32, 48, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "1x1, strided": (8, 8, 16, 16, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "odd channels": (5, 6, 5, 13, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "1x7": (6, 9, 8, 8, (1, 7), (1, 1), (0, 3), (1, 1), 1),
    "dilated": (11, 10, 8, 16, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    "groups": (6, 6, 12, 24, (3, 3), (1, 1), (1, 1), (1, 1), 3),
}
EPILOGUES = (
    FloatEpilogue(),
    FloatEpilogue(low=0.0),
    FloatEpilogue(low=-1.0, high=2.0, residual=True),
)


def nchw(array: Any) -> torch.Tensor:
    return torch.from_numpy(array.transpose(0, 3, 1, 2).astype(np.float64))


def finish(acc: torch.Tensor, epilogue: FloatEpilogue, residual: Any) -> Any:
    total = acc.permute(0, 2, 3, 1).numpy()
    return np.clip(total + residual if epilogue.residual else total, epilogue.low, epilogue.high)


def layer(name: str, epilogue: FloatEpilogue) -> conv2d.Conv2DSpec:
    height, width, channels, outputs, kernel, strides, padding, dilation, groups = LAYERS[name]
    return conv2d.Conv2DSpec(
        2, height, width, channels, outputs, kernel, strides, padding * 2, dilation, groups,
        epilogue=epilogue, dtype="float32",
    )  # fmt: skip


def random(rng: np.random.Generator, *shape: int) -> Any:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("processor", EXECUTED)
def test_convolution_is_pytorchs(name: str, epilogue: FloatEpilogue, processor: str) -> None:
    rng, target = np.random.default_rng(3), make_target(processor)
    spec = layer(name, epilogue)
    flat = spec.flattened()
    tiling = conv2d.target_tiling(flat, Machine.of(target, 2))
    x = random(rng, spec.batch, spec.height, spec.width, spec.channels)
    weight = random(rng, spec.outputs, *spec.kernel, spec.channels // spec.groups)
    bias = np.zeros(conv2d.padded_outputs(flat, tiling), np.float32)
    bias[: spec.outputs] = random(rng, spec.outputs)
    residual = random(rng, spec.batch, spec.out_height, spec.out_width, spec.outputs)
    inputs = [
        x.reshape(conv2d.input_shape(flat, tiling)), conv2d.pack_weight(weight, flat, tiling), bias,
    ]  # fmt: skip
    if epilogue.residual:
        inputs.append(residual.reshape(conv2d.output_shape(flat, tiling)))
    acc = functional.conv2d(
        nchw(x), nchw(weight), torch.from_numpy(bias[: spec.outputs]).double(), spec.strides,
        spec.padding[:2], spec.dilation, spec.groups,
    )  # fmt: skip
    expected = finish(acc, epilogue, residual)

    result = run(conv2d.kernel(flat, tiling), target, inputs).reshape(expected.shape)

    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", COMPILED, ids=str)
def test_convolution_compiles_for_other_processors(target: Any) -> None:
    spec = layer("3x3", FloatEpilogue(low=0.0))
    tiling = conv2d.target_tiling(spec, Machine.of(make_target(target), 2))

    build(conv2d.kernel(spec, tiling), make_target(target))


def window(
    operation: str, x: Any, outputs: int, kernel: int, stride: int, padding: int, expected: Any,
    epilogue: FloatEpilogue, dilation: int = 1, count_include_pad: bool = False,
) -> float_window.FloatWindowSpec:  # fmt: skip
    return float_window.FloatWindowSpec(
        operation, x.shape, (kernel, kernel), (stride, stride), (padding,) * 4,
        (dilation, dilation), tuple(expected.shape[2:]), outputs, epilogue, count_include_pad,
    )  # fmt: skip


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize(
    ("channels", "multiplier", "kernel", "stride", "padding", "dilation"),
    [(32, 1, 3, 1, 1, 1), (24, 1, 5, 2, 2, 1), (7, 1, 3, 1, 0, 1), (8, 2, 3, 1, 2, 2)],
)
def test_depthwise_convolution_is_pytorchs(
    channels: int, multiplier: int, kernel: int, stride: int, padding: int, dilation: int,
    epilogue: FloatEpilogue,
) -> None:  # fmt: skip
    rng, target = np.random.default_rng(4), make_target("haswell")
    outputs = channels * multiplier
    x, weight, bias = (
        random(rng, 2, 9, 12, channels), random(rng, kernel, kernel, outputs), random(rng, outputs)
    )  # fmt: skip
    taps = torch.from_numpy(weight.transpose(2, 0, 1)[:, None].astype(np.float64))
    acc = functional.conv2d(
        nchw(x), taps, torch.from_numpy(bias).double(), stride, padding, dilation, channels
    )
    residual = random(rng, 2, *acc.shape[2:], outputs)
    spec = window("depthwise_conv2d", x, outputs, kernel, stride, padding, acc, epilogue, dilation)
    inputs = [x, weight, bias, *([residual] if epilogue.residual else [])]

    result = run(float_window.kernel(spec, Machine.of(target, 2)), target, inputs)

    np.testing.assert_allclose(result, finish(acc, epilogue, residual), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 2, 0)])
def test_maximum_is_pytorchs(kernel: int, stride: int, padding: int, ceil: bool) -> None:
    target = make_target("haswell")
    x = random(np.random.default_rng(5), 2, 8, 13, 20) - 5  # padding would win were it 0
    expected = functional.max_pool2d(nchw(x), kernel, stride, padding, 1, ceil)
    spec = window("max_pool2d", x, 20, kernel, stride, padding, expected, FloatEpilogue())

    result = run(float_window.kernel(spec, Machine.of(target, 2)), target, [x])

    np.testing.assert_array_equal(result, finish(expected, FloatEpilogue(), None))


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (5, 3, 0)])
def test_average_is_pytorchs(
    kernel: int, stride: int, padding: int, ceil: bool, counts: bool
) -> None:
    target = make_target("haswell")
    x = random(np.random.default_rng(6), 2, 8, 13, 16)
    expected = functional.avg_pool2d(nchw(x), kernel, stride, padding, ceil, counts)
    spec = window(
        "avg_pool2d", x, 16, kernel, stride, padding, expected, FloatEpilogue(),
        count_include_pad=counts,
    )  # fmt: skip

    result = run(float_window.kernel(spec, Machine.of(target, 2)), target, [x])

    np.testing.assert_allclose(
        result, finish(expected, FloatEpilogue(), None), rtol=1e-5, atol=1e-6
    )
