import numpy as np
import pytest
import tvm
from tvm import relax

from tvmquant.errors import QuantizationError
from tvmquant.simulator import simulate

MODES = (
    "half_pixel",
    "align_corners",
    "asymmetric",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)
ROUNDINGS = ("round", "round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "")
X = np.random.default_rng(0).permutation(1 * 2 * 6 * 5).reshape(1, 2, 6, 5).astype(np.uint8)


def resize(mode, rounding, size, layout="NCHW"):
    return lambda _, x: relax.op.image.resize2d(
        x, size, [0.1, 0.0, 0.9, 1.2], layout, "nearest_neighbor", mode, rounding,
        extrapolation_value=7,
    )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_every_rounding_equals_tvm(build_graph, mode):
    sizes = ((12, 10), (7, 3), (1, 13))
    if mode in ("align_corners", "tf_crop_and_resize"):
        sizes = sizes[:2]  # TVM divides by zero for an extent of 1
    variants = [resize(mode, rounding, size) for rounding in ROUNDINGS for size in sizes]

    def all_variants(builder, x):
        return relax.Tuple([builder.emit(make(builder, x)) for make in variants])

    module = build_graph([((2, 6, 5), "uint8")], all_variants)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    expected = machine["main"](tvm.runtime.tensor(X))
    results = simulate(module, X)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, reference.numpy())


def test_channels_last(run_graph):
    (nchw,) = run_graph(resize("half_pixel", "round", (12, 7)), X)
    (nhwc,) = run_graph(resize("half_pixel", "round", (12, 7), "NHWC"), X.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(nhwc.transpose(0, 3, 1, 2), nchw)


def test_doubling_repeats_every_position(run_graph):
    (result,) = run_graph(resize("asymmetric", "floor", (12, 10)), X)
    np.testing.assert_array_equal(result, X.repeat(2, 2).repeat(2, 3))


@pytest.mark.parametrize(
    "mode", ["half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"]
)
def test_linear_interpolation_of_floats_follows_tvm(build_graph, mode):
    sizes = ((12, 10), (7, 3), (4, 13))

    def all_sizes(builder, x):
        resized = (
            relax.op.image.resize2d(
                x, size, method="linear", coordinate_transformation_mode=mode, layout="NCHW"
            )
            for size in sizes
        )
        return relax.Tuple([builder.emit(call) for call in resized])

    module = build_graph([((2, 6, 5), "float32")], all_sizes)
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    x = X.astype(np.float32)
    expected = machine["main"](tvm.runtime.tensor(x))
    for result, reference in zip(simulate(module, x), expected, strict=True):
        np.testing.assert_allclose(result, reference.numpy(), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "bound"), [((12, 10), 0.5), ((7, 13), 0.5 + 2 * 255 / 2**12)])
def test_linear_interpolation_of_integers_is_that_of_floats_rounded_once(
    run_graph, mode, size, bound
):
    def resize(_builder, x):
        return relax.op.image.resize2d(
            x, size, method="linear", coordinate_transformation_mode=mode, layout="NCHW"
        )

    x = np.random.default_rng(4).integers(0, 256, X.shape).astype(np.uint8)
    (found,), (exact,) = run_graph(resize, x), run_graph(resize, x.astype(np.float32))
    aligned = mode in ("align_corners", "tf_crop_and_resize")  # no factor is a power of two
    bound = 0.5 + 2 * 255 / 2**12 if aligned else bound
    assert found.dtype == np.uint8
    assert np.abs(found - exact).max() <= bound + 1e-4


def test_cubic_interpolation_is_refused(run_graph):
    with pytest.raises(QuantizationError, match="found 'cubic'"):
        run_graph(lambda _, x: relax.op.image.resize2d(x, (12, 10), method="cubic"), X)
