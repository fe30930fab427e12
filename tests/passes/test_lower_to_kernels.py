"""Integer layers of every bit width as kernels: equal to the simulator, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.pairwise import pairwise
from tests.passes.graphs import calls, const, graph, kernel_graph, normal, quantize
from tests.schedules.kernel_testing import EXECUTED, make_target
from tvmquant.bit_choice import BitChoice
from tvmquant.errors import QuantizationError
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import DataflowRewriter, bindings_of
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.passes.convert_layout import ConvertLayout
from tvmquant.passes.fuse_epilogue import FuseEpilogue
from tvmquant.passes.lower_to_kernels import LowerToKernels
from tvmquant.passes.store_weights import CHANNELS, LAYOUTS
from tvmquant.schedules import conv2d
from tvmquant.schedules.conv2d import Conv2DSpec
from tvmquant.simulator import simulate

op, nn = relax.op, relax.op.nn
SHAPE = (1, 6, 9, 10)
LAYERS = ("first", "dilated", "grouped", "last")


def network(emit: Any, x: Any) -> Any:
    def bias(seed: int) -> Any:
        return const(normal(1, 24, 1, 1, seed=seed))

    def conv(x: Any, inputs: int, name: str, kernel: int = 3, **options: Any) -> Any:
        weight = const(normal(24, inputs, kernel, kernel, scale=0.2, seed=len(name)))
        y = emit(nn.conv2d(x, weight, padding=kernel // 2, **options), name)
        return emit(op.add(y, bias(inputs)))

    first = emit(nn.relu(conv(x, 6, "first")))
    dilated = nn.conv2d(first, const(normal(24, 24, 3, 3, scale=0.1)), padding=2, dilation=2)
    dilated = emit(nn.relu(emit(op.add(emit(dilated, "dilated"), bias(3)))))
    grouped = emit(nn.relu(conv(dilated, 8, "grouped", groups=3)))
    return emit(nn.relu(emit(op.add(conv(grouped, 24, "last", kernel=1), first))))


def integers(name: str) -> tuple[tvm.IRModule, Any]:
    """Return the network at L2 with a bit choice, and an input."""
    choice = BitChoice.parse(name)
    x = normal(*SHAPE)
    module = graph(network, SHAPE)
    edges = [str(v.name) for v, c in bindings_of(module["main"]) if qop.is_call(c, "relax.nn.relu")]
    levels = quantize(
        module, [x], weights=dict.fromkeys(LAYERS, choice.weight),
        activations=dict.fromkeys(edges, choice.activation),
    )  # fmt: skip
    return ConvertLayout()(FuseEpilogue()(levels.integer)), x


def lowered(module: tvm.IRModule, processor: str) -> tvm.IRModule:
    return pipeline.lower(module, Machine.of(make_target(processor), 2), 1)


def run(module: tvm.IRModule, x: Any, processor: str) -> Any:
    """Return what the library of a module at L2 computes."""
    target = make_target(processor)
    with target:
        executable = relax.build(
            lowered(module, processor), target,
            relax_pipeline=pipeline.virtual_machine_pipeline(),
        )  # fmt: skip
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x, tvm.cpu())).numpy()


def kernels(module: tvm.IRModule) -> list[tuple[str, list[Any]]]:
    """Return names and constants of the convolutions that are called."""
    found = []
    for _, call in bindings_of(module["main"]):
        if isinstance(call, relax.Call) and isinstance(call.args[0], tvm.ir.GlobalVar):
            constants = [qop.constant_array(a) for a in call.args[1].fields]
            found.append((str(call.args[0].name_hint), [c for c in constants if c is not None]))
    return [(name, constants) for name, constants in found if name.startswith("conv2d")]


def test_a_dense_layer_becomes_one_kernel() -> None:
    weight = np.arange(-40, 40, dtype=np.int8).reshape(5, 16)
    bias = np.arange(5, dtype=np.int32)
    attrs = {
        "input_zero_point": 0, "input_qmin": 0, "input_qmax": 255, "choice": "w8a8",
        "epilogue": 0, "out_dtype": "int32", "id": "dense",
    }  # fmt: skip

    def before(emit: Any, x: Any) -> Any:
        return emit(qop.emit(qop.QDENSE, [x, *map(qop.constant, (weight, bias))], attrs))

    target = make_target("znver4")
    spec = Conv2DSpec(2, 1, 1, 16, 5).flattened()
    tiling = conv2d.target_tiling(spec, Machine.of(target, 2))
    lengthened = np.zeros(conv2d.padded_outputs(spec, tiling), np.int32)
    lengthened[:5] = bias
    expected = kernel_graph(
        conv2d.kernel(spec, tiling, "dense").without_attr("global_symbol"),
        conv2d.input_shape(spec, tiling),
        [conv2d.pack_weight(weight[:, None, None, :], spec, tiling), lengthened],
        relax.TensorType((2, 16), "uint8"),
        relax.TensorType((1, 1, 2, 5), "int32"),
        relax.TensorType((2, 5), "int32"),
    )

    after = LowerToKernels(Machine.of(target, 2))(graph(before, (2, 16), dtype="uint8"))

    (layout,) = after.attrs[LAYOUTS].values()  # notes of the weight, which no kernel reads
    assert json.loads(json.loads(layout)[1])["outputs"] == 5
    bare = after.without_attr(LAYOUTS).without_attr(CHANNELS)
    tvm.ir.assert_structural_equal(bare, expected)
    tvm.ir.assert_structural_equal(LowerToKernels(Machine.of(target, 2))(after), after)


def test_float_operators_are_left_alone() -> None:
    def body(emit: Any, x: Any) -> Any:
        return emit(nn.max_pool2d(emit(nn.relu(x)), (2, 2)))

    module = graph(body, (1, 4, 6, 6))
    tvm.ir.assert_structural_equal(LowerToKernels(Machine.of("haswell", 2))(module), module)


def test_what_moves_extents_of_1_only_is_a_view_also_in_float() -> None:
    """TVM's virtual machine makes it one, and no kernel is called that a profile could time."""

    def body(emit: Any, x: Any) -> Any:
        return emit(nn.relu(emit(op.permute_dims(x, [0, 2, 1, 3]))))

    lowered = LowerToKernels(Machine.of("haswell", 2))(graph(body, (1, 20, 1, 6)))
    calls = [v for _, v in bindings_of(lowered["main"]) if isinstance(v, relax.Call)]
    operators = [call.op.name for call in calls]
    assert operators[:2] == ["relax.reshape", "relax.nn.relu"]


@pytest.mark.parametrize(
    *pairwise(
        strength=1,
        choice=["w8a4", "w4a8", "w4a4", "w4a8g32", "w2a6", "w6a5", "w3a7g64"],
        processor=EXECUTED,
    )
)
def test_kernels_compute_what_is_simulated(choice: str, processor: str) -> None:
    module, x = integers(choice)
    np.testing.assert_array_equal(run(module, x, processor), simulate(module, x)[0])


@pytest.mark.parametrize("processor", EXECUTED)
def test_slopes_per_channel(processor: str) -> None:
    slopes = const(np.linspace(-1.5, 2, 6, dtype=np.float32))

    def body(emit: Any, x: Any) -> Any:
        y = emit(nn.prelu(emit(nn.max_pool2d(x, (2, 2))), slopes, 1))
        for inputs in (6, 1):
            y = nn.conv2d(y, const(normal(6, inputs, 3, 3)), padding=1, groups=6 // inputs)
            y = emit(nn.prelu(emit(op.add(emit(y), const(normal(1, 6, 1, 1)))), slopes, 1))
        y = emit(nn.conv2d_transpose(y, const(normal(6, 6, 2, 2)), strides=2))
        return emit(nn.prelu(y, slopes, 1))

    x = normal(*SHAPE)
    module = ConvertLayout()(FuseEpilogue()(quantize(graph(body, SHAPE), [x]).integer))
    layers = [call for name in (qop.QCONV2D, qop.QCONV2D_TRANSPOSE) for call in calls(module, name)]
    assert [qop.attributes(call)["slopes"] for call in layers] == [1, 1, 1]
    np.testing.assert_array_equal(run(module, x, processor), simulate(module, x)[0])


@pytest.mark.parametrize("counts", [False, True])
def test_a_pooled_tensor_less_itself(counts: bool) -> None:
    def body(emit: Any, x: Any) -> Any:
        pooled = emit(nn.avg_pool2d(x, (3, 3), padding=(1, 1), count_include_pad=counts))
        return emit(op.subtract(pooled, x))

    x = normal(*SHAPE)
    module = ConvertLayout()(FuseEpilogue()(quantize(graph(body, SHAPE), [x]).integer))
    assert [qop.attributes(call)["residual"] for call in calls(module, qop.POOL_SUM)] == [1]
    np.testing.assert_array_equal(run(module, x, EXECUTED[0]), simulate(module, x)[0])


def test_sums_products_and_concats_of_any_shape() -> None:
    def body(emit: Any, x: Any) -> Any:
        gate = emit(op.mean(x, [2, 3], keepdims=True))
        gated = emit(op.add(emit(op.multiply(gate, x)), x))
        row = emit(op.strided_slice(gated, [2], [3], [4]))
        total = emit(op.add(emit(op.add(row, gate)), emit(op.subtract(row, gated))))
        placed = emit(op.multiply(emit(op.add(total, const(normal(1, 6, 9, 10)))),
                                  const(normal(9, 1, seed=1))))  # fmt: skip
        return emit(op.concat([placed, const(normal(1, 2, 9, 10)), gated], 1))

    x = normal(*SHAPE)
    module = ConvertLayout()(FuseEpilogue()(quantize(graph(body, SHAPE), [x]).integer))
    (product,) = calls(module, qop.QMULTIPLY)
    assert qop.attributes(product)["residual"] == 1
    np.testing.assert_array_equal(run(module, x, "haswell"), simulate(module, x)[0])


@pytest.mark.parametrize("outputs", [1, 5])
def test_transposed_convolutions_without_overlap_are_pointwise(outputs: int) -> None:
    """Every element of the kernel is an output channel, then rows are woven."""

    def body(emit: Any, x: Any) -> Any:
        weight = const(normal(6, outputs, 2, 3, scale=0.2))
        return emit(nn.relu(emit(nn.conv2d_transpose(x, weight, strides=(2, 3)))))

    x = normal(*SHAPE)
    integer = ConvertLayout()(FuseEpilogue()(quantize(graph(body, SHAPE), [x]).integer))
    module = lowered(integer, "haswell")
    names = [str(v.name_hint) for v in module.functions]
    assert any(name.startswith("conv2d_u8s8s32") for name in names)
    assert not any(name.startswith("conv2d_transpose") for name in names)
    np.testing.assert_array_equal(run(integer, x, "haswell"), simulate(integer, x)[0])


def test_four_bit_weights_take_half_a_byte() -> None:
    sizes = {}
    for bits in (4, 8):
        module, _ = integers(f"w{bits}a8")
        sizes[bits] = [constants[0].nbytes for _, constants in kernels(lowered(module, "haswell"))]
    for narrow, wide in zip(sizes[4], sizes[8], strict=True):
        assert narrow <= 0.6 * wide


def test_names_say_what_is_multiplied() -> None:
    module, _ = integers("w4a8g32")
    names = [name for name, _ in kernels(lowered(module, "haswell"))]
    # where rows of the window are not one run, groups are multiplied out
    types = [next(t for t in ("u8s4g32s32", "u8s4s32", "u8s8s32") if t in name) for name in names]
    assert types == ["u8s4g32s32", "u8s8s32", "u8s8s32", "u8s4g32s32"]


@pytest.mark.parametrize(
    ("choice", "processor", "chain", "bits"),
    [
        ("w4a8", "haswell", 8, 4), ("w4a4", "haswell", 128, 4), ("w4a4", "znver4", 0, 4),
        ("w2a8", "haswell", 64, 4), ("w7a8", "haswell", 1, 8), ("w5a4", "haswell", 64, 8),
    ],
)  # fmt: skip
def test_tuning_sees_what_weights_and_inputs_allow(
    choice: str, processor: str, chain: int, bits: int
) -> None:
    module, _ = integers(choice)
    seen = {}

    def record(_family: str, spec: Any, layer: str) -> None:
        seen[layer] = spec

    pipeline.lower(module, Machine.of(make_target(processor), 2), 1, record)
    assert seen["last"].chain == chain
    assert seen["last"].epilogue.residual
    assert {spec.w_bits for spec in seen.values()} == {bits}


class _Widened(DataflowRewriter):
    """Replace every weight by one that 4 bits cannot hold."""

    def visit_binding(self, _var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if not qop.is_call(value, qop.QCONV2D):
            return None
        weight = np.resize(np.arange(17, dtype=np.int8), qop.constant_array(value.args[1]).shape)
        args = [self.lookup(a) for a in value.args]
        args[1] = qop.constant(weight)
        return qop.emit(qop.QCONV2D, args, qop.attributes(value), value.span)


@pytest.mark.parametrize("choice", ["w4a8", "w4a8g32"])
def test_weights_that_do_not_fit_are_named(choice: str) -> None:
    module = _Widened(integers(choice)[0]).rewrite()
    assert calls(module, qop.QCONV2D)
    with pytest.raises(QuantizationError, match=r"'first'.*\[0, 16\]"):
        lowered(module, "haswell")
