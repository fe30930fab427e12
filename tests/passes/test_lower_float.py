"""Float graphs as kernels: fused, channels last, and equal to the twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tests.passes.graphs import graph, kernel_graph, quantize, run_twin
from tests.schedules.kernel_testing import EXECUTED, make_target
from tvmquant.ir import quantized_ops as qop
from tvmquant.ir.rewriter import bindings_of
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.passes.lower_float import OPAQUE, LowerFloat
from tvmquant.schedules import conv2d
from tvmquant.schedules.conv2d import Conv2DSpec
from tvmquant.schedules.epilogue import FloatEpilogue

RNG = np.random.default_rng(0)
WEIGHTS = {
    shape: qop.constant(RNG.normal(size=shape).astype(np.float32) / 4)
    for shape in [
        (16, 8, 3, 3), (8, 8, 3, 3), (16, 1, 3, 3), (16, 4, 3, 3), (8, 16, 1, 1), (8, 6, 2, 2),
        (8, 6, 4, 4), (16, 5), (1, 8, 1, 1), (1, 16, 1, 1), (5,), (8, 1, 1), (8, 12, 5), (12,),
    ]
}  # fmt: skip
IMAGE = (1, 8, 10, 12)
op, nn = relax.op, relax.op.nn


def conv(x: Any, outputs: int = 8, **options: Any) -> Any:
    return nn.conv2d(x, WEIGHTS[outputs, 8, 3, 3], padding=1, **options)


def biased(emit: Any, x: Any, outputs: int = 8) -> Any:
    return emit(op.add(emit(conv(x, outputs)), WEIGHTS[1, outputs, 1, 1]))


def lower(module: tvm.IRModule, processor: str = "haswell") -> tvm.IRModule:
    return pipeline.lower(pipeline.canonicalize(module), Machine.of(make_target(processor), 2), 1)


def kernels(module: tvm.IRModule) -> list[str]:
    """Return the names of the kernels that are called, without geometry and tile."""
    calls = [value for _, value in bindings_of(module["main"]) if isinstance(value, relax.Call)]
    return [
        str(call.args[0].name_hint) for call in calls if isinstance(call.args[0], tvm.ir.GlobalVar)
    ]


def run(module: tvm.IRModule, inputs: list[Any], processor: str = "haswell") -> list[Any]:
    target = make_target(processor)
    with target:
        executable = relax.build(
            lower(module, processor), target, relax_pipeline=pipeline.virtual_machine_pipeline()
        )
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(x, tvm.cpu()) for x in inputs))
    several = not isinstance(result, tvm.runtime.Tensor)
    return [tensor.numpy() for tensor in (result if several else [result])]


def hard_swish(emit: Any, x: Any) -> Any:
    gate = emit(op.clip(emit(op.add(x, relax.const(3.0))), 0, 6))
    return emit(op.multiply(emit(op.multiply(x, gate)), relax.const(1 / 6)))


def squeeze_excite(emit: Any, x: Any) -> Any:
    y = emit(nn.relu(biased(emit, x, 16)))
    squeezed = emit(nn.conv2d(emit(op.mean(y, [2, 3], True)), WEIGHTS[8, 16, 1, 1]))
    gate = emit(op.sigmoid(emit(op.concat([squeezed, squeezed], 1))))
    return emit(op.multiply(y, gate))


def residual_first(emit: Any, x: Any) -> Any:
    return emit(nn.relu(emit(op.add(x, biased(emit, x)))))


def residual_of_two_convolutions(emit: Any, x: Any) -> Any:
    return emit(op.add(biased(emit, x), biased(emit, emit(nn.relu(x)))))


def blocks_in_a_row(emit: Any, x: Any) -> Any:
    first = biased(emit, x)
    second = emit(op.add(first, biased(emit, first)))
    return emit(op.add(second, biased(emit, second)))


def shared_convolution(emit: Any, x: Any) -> Any:
    y = biased(emit, x)
    return emit(nn.relu(y)), emit(op.sigmoid(y))


def doubled_convolution(emit: Any, x: Any) -> Any:
    y = biased(emit, x)
    return emit(op.add(y, y))


def classifier(emit: Any, x: Any) -> Any:
    y = emit(nn.relu(biased(emit, x, 16)))
    flat = emit(op.reshape(emit(op.mean(y, [2, 3], True)), (1, 16)))
    logits = emit(op.add(emit(op.matmul(flat, WEIGHTS[16, 5])), WEIGHTS[5,]))
    return emit(nn.softmax(logits, -1))


GRAPHS: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda emit, x: emit(nn.relu(biased(emit, x))),
    "clip": lambda emit, x: emit(op.clip(biased(emit, x), -0.5, 0.5)),
    "strided": lambda emit, x: emit(conv(x, 16, strides=2)),
    "dilated": lambda emit, x: emit(conv(x, 16, dilation=2)),
    "grouped": lambda emit, x: emit(
        nn.conv2d(biased(emit, x, 16), WEIGHTS[16, 4, 3, 3], groups=4, padding=1)
    ),
    "depthwise": lambda emit, x: emit(
        op.clip(
            emit(nn.conv2d(biased(emit, x, 16), WEIGHTS[16, 1, 3, 3], groups=16, padding=1)), 0, 6
        )
    ),
    "depthwise, twice the channels": lambda emit, x: emit(
        nn.conv2d(x, WEIGHTS[16, 1, 3, 3], groups=8, padding=1)
    ),
    "transposed without overlap": lambda emit, x: emit(
        nn.relu(emit(nn.conv2d_transpose(x, WEIGHTS[8, 6, 2, 2], strides=2)))
    ),
    "transposed with overlap": lambda emit, x: emit(
        nn.conv2d_transpose(x, WEIGHTS[8, 6, 4, 4], strides=2, padding=1)
    ),
    "max pool": lambda emit, x: emit(nn.max_pool2d(x, 3, 2, 1)),
    "average pool": lambda emit, x: emit(nn.avg_pool2d(x, 3, 2, 1, count_include_pad=True)),
    "nearest": lambda emit, x: emit(
        op.image.resize2d(biased(emit, x), (20, 24), None, "NCHW", "nearest_neighbor", "asymmetric",
                          "floor")
    ),
    "bilinear": lambda emit, x: emit(
        op.image.resize2d(biased(emit, x), (20, 24), None, "NCHW", "linear", "half_pixel")
    ),
    "concat": lambda emit, x: emit(op.concat([biased(emit, x, 16), x], 1)),
    "broadcast from a lower rank": lambda emit, x: emit(
        op.multiply(biased(emit, x), WEIGHTS[8, 1, 1])
    ),
    "a weight per channel": lambda emit, x: emit(op.matmul(x, WEIGHTS[8, 12, 5])),
    "a vector": lambda emit, x: emit(op.matmul(x, WEIGHTS[12,])),
    "mean of rows": lambda emit, x: emit(op.mean(biased(emit, x), [2])),
    "hard swish": lambda emit, x: hard_swish(emit, biased(emit, x)),
    "squeeze and excite": squeeze_excite,
    "residual first": residual_first,
    "residual of two convolutions": residual_of_two_convolutions,
    "blocks in a row": blocks_in_a_row,
    "shared convolution": shared_convolution,
    "doubled convolution": doubled_convolution,
    "classifier": classifier,
}  # fmt: skip


def test_a_dense_layer_becomes_one_kernel() -> None:
    def before(emit: Any, x: Any) -> Any:
        return emit(nn.relu(emit(op.add(emit(op.matmul(x, WEIGHTS[16, 5])), WEIGHTS[5,]))))

    target = make_target("haswell")
    spec = Conv2DSpec(2, 1, 1, 16, 5, epilogue=FloatEpilogue(low=0.0), dtype="float32").flattened()
    tiling = conv2d.target_tiling(spec, Machine.of(target, 2))
    weight = WEIGHTS[16, 5].value.numpy().T[:, None, None, :]
    bias = np.zeros(conv2d.padded_outputs(spec, tiling), np.float32)
    bias[:5] = WEIGHTS[5,].value.numpy()
    kernel = conv2d.kernel(spec, tiling, "dense").with_attr("op_pattern", OPAQUE)
    expected = kernel_graph(
        kernel.without_attr("global_symbol"),
        conv2d.input_shape(spec, tiling),
        [conv2d.pack_weight(weight, spec, tiling), bias],
        *(relax.TensorType(shape, "float32") for shape in ((2, 16), (1, 1, 2, 5), (2, 5))),
    )

    after = LowerFloat(Machine.of(target, 2))(graph(before, (2, 16)))

    tvm.ir.assert_structural_equal(after, expected)
    tvm.ir.assert_structural_equal(LowerFloat(Machine.of(target, 2))(after), after)


def test_a_product_of_two_inputs_is_left_alone() -> None:
    module = graph(lambda emit, x, y: emit(op.matmul(x, y)), (2, 16), (16, 5))

    after = LowerFloat(Machine.of("haswell", 2))(module)

    tvm.ir.assert_structural_equal(after, module)


@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_compute_what_the_twin_does(name: str) -> None:
    module = graph(GRAPHS[name], IMAGE)
    x = np.random.default_rng(1).normal(size=IMAGE).astype(np.float32)

    results = run(module, [x])

    expected = run_twin(module, [x])
    assert len(results) == len(expected)
    for result, tensor in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("processor", EXECUTED)
def test_other_processors_compute_the_same(processor: str) -> None:
    module = graph(squeeze_excite, IMAGE)
    x = np.random.default_rng(1).normal(size=IMAGE).astype(np.float32)

    (result,) = run(module, [x], processor)

    np.testing.assert_allclose(result, run_twin(module, [x])[0], rtol=1e-4, atol=1e-5)


def test_one_kernel_computes_convolution_bias_residual_and_relu() -> None:
    names = kernels(lower(graph(residual_first, IMAGE)))

    convolutions = [name for name in names if name.startswith("conv2d")]
    assert len(convolutions) == 1
    assert convolutions[0].endswith("_bias_add_clip")
    assert all(name.startswith(("conv2d", "permute", "reshape")) for name in names)


def test_a_shared_convolution_keeps_its_result() -> None:
    names = kernels(lower(graph(shared_convolution, IMAGE)))

    (convolution,) = (name for name in names if name.startswith("conv2d"))
    assert convolution.endswith("_bias")


def test_activations_stay_channels_last_between_layers() -> None:
    names = kernels(lower(graph(blocks_in_a_row, IMAGE)))

    assert sum(name.startswith("permute") for name in names) == 2


def test_an_elementwise_chain_is_one_kernel_with_one_pass() -> None:
    module = lower(graph(GRAPHS["hard swish"], IMAGE))

    (name,) = (name for name in kernels(module) if name.startswith("fused"))
    body = module[name].script()
    assert body.count("T.sblock(") == 2  # the root and one computation
    assert "T.vectorized" in body


def test_layer_names_survive() -> None:
    def body(emit: Any, x: Any) -> Any:
        return emit(nn.relu(emit(conv(x), "stem")))

    calls = [value for _, value in bindings_of(lower(graph(body, IMAGE))["main"])]

    (convolution,) = (
        c for c in calls
        if isinstance(c, relax.Call) and "conv2d" in str(getattr(c.args[0], "name_hint", ""))
    )  # fmt: skip
    assert convolution.span.source_name.name == "stem"


def test_an_integer_graph_keeps_its_integer_kernels() -> None:
    levels = quantize(graph(GRAPHS["relu"], IMAGE), [np.ones(IMAGE, np.float32)])

    assert not pipeline.has_integer_operators(levels.float_)
    assert pipeline.has_integer_operators(levels.integer)
