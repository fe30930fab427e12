"""Float convolutions and average pooling of NCHW tensors, which no integer kernel computes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvmquant.arithmetic import Array
from tvmquant.errors import QuantizationError
from tvmquant.simulator.calls import OpCall, Operator, batch_slices
from tvmquant.simulator.windows import pad_spatial, reduce_windows, sliding_windows, stretch


def conv2d(call: OpCall) -> Array:
    """Convolution of OIHW weights."""
    _require_layouts(call, data_layout="NCHW", kernel_layout="OIHW")
    a = call.attrs
    x, weight = call.args
    return _convolve(x, weight, a["strides"], a["padding"], a["dilation"], a["groups"])


def conv2d_transpose(call: OpCall) -> Array:
    """Transposed convolution of IOHW weights."""
    _require_layouts(call, data_layout="NCHW", kernel_layout="IOHW")
    a, groups = call.attrs, call.attrs["groups"]
    x, weight = call.args
    inputs, outputs, *kernel = weight.shape
    stretched, margins = stretch(
        x,
        kernel,
        strides=a["strides"],
        padding=a["padding"],
        dilation=a["dilation"],
        output_padding=a["output_padding"],
        value=0.0,
    )
    by_output = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
    flipped = by_output.reshape(-1, inputs // groups, *kernel)[:, :, ::-1, ::-1]
    return _convolve(stretched, flipped, (1, 1), margins, a["dilation"], groups)


def avg_pool2d(call: OpCall) -> Array:
    """Mean over windows, of the positions inside the image or, if asked, inside its padding."""
    _require_layouts(call, layout="NCHW")
    a = call.attrs
    if a["ceil_mode"]:
        raise QuantizationError(
            f"layer {call.layer}: the simulator averages over whole windows only, found ceil_mode"
        )
    x = call.args[0]
    counted = np.ones((1, 1, *x.shape[2:]), x.dtype)

    def total(values: Array, fill: float) -> Array:
        padded = pad_spatial(values, a["padding"], fill)
        return reduce_windows(padded, np.add, a["pool_size"], a["strides"], a["dilation"])

    result: Array = total(x, 0.0) / total(counted, float(a["count_include_pad"]))
    return result


def _convolve(
    x: Array,
    weight: Array,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Convolve NCHW with OIHW, group by group."""
    padded = pad_spatial(x, padding, 0.0)
    windows = sliding_windows(padded, weight.shape[2:], strides, dilation)
    count, channels, out_h, out_w = windows.shape[:4]
    result = np.empty((count, len(weight), out_h, out_w), x.dtype)
    kernels = np.split(weight, groups)
    image = channels * out_h * out_w * weight[0, 0].size * x.itemsize
    for part in batch_slices(count, image):
        inputs = np.split(windows[part], groups, axis=1)
        products = [
            np.tensordot(taps, kernel, axes=((1, 4, 5), (1, 2, 3)))
            for taps, kernel in zip(inputs, kernels, strict=True)
        ]
        result[part] = np.moveaxis(np.concatenate(products, axis=-1), -1, 1)
    return result


def _require_layouts(call: OpCall, **layouts: str) -> None:
    for name, expected in layouts.items():
        if call.attrs[name] != expected:
            raise QuantizationError(
                f"layer {call.layer}: the simulator computes floats in {expected} only, "
                f"found {name} {call.attrs[name]!r}"
            )


FLOAT_WINDOW_OPS: dict[str, Operator] = {
    "relax.nn.conv2d": conv2d,
    "relax.nn.conv2d_transpose": conv2d_transpose,
    "relax.nn.avg_pool2d": avg_pool2d,
}
