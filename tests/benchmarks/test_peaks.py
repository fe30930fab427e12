"""Which peak a kernel is held against."""

import pytest

from benchmarks.peaks import Peaks
from tvmquant.deploy.manifest import LayerInfo

PEAKS = Peaks(bytes=100.0, words=50.0, bits=600.0)


@pytest.mark.parametrize(
    ("op", "kernel", "peak"),
    [
        ("conv2d", "conv2d_u8s8s32_vnni512_tile8x2_9x9x3o32_requantize", 100.0),
        ("conv2d", "conv2d_u8s4g32s32_vnni512_tile8x2_9x9x3o32_requantize", 100.0),
        ("conv2d", "conv2d_u1s1s32_vpopcntd512_tile8x2_9x9x32o32_requantize", 600.0),
        ("dense", "dense_u2s2s32_vpshufb256_tile7x1_chain24_1x7x96o5_accumulate", 150.0),
        ("depthwise_conv2d", "depthwise_conv2d_u8s8s32_9x9x32", 50.0),
    ],
)
def test_kernels_that_count_bits_have_a_peak_for_each_pair_of_planes(op, kernel, peak):
    layer = LayerInfo("layer", op, kernel, [1], "uint8")
    assert PEAKS.of(layer) == peak
