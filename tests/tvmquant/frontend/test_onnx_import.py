"""Whole models: batch, names, input shapes, number types, both exporters, real networks."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from tvm import relax

from benchmarks import models
from benchmarks.models.exporter import export_onnx
from tvmquant.errors import ModelError, UnsupportedModelError
from tvmquant.frontend import load_onnx
from tvmquant.graph import layer_name
from tvmquant.twin import Twin


def names_of(graph):
    names = []

    def visit(node):
        if isinstance(node, relax.Call):
            names.append(layer_name(node))

    relax.analysis.post_order_visit(graph.main, visit)
    return names


def dense_model(make_model, batch, target):
    """Flatten to ``target`` and multiply."""
    nodes = [
        helper.make_node("Reshape", ["x", "t"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    weight = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)
    constants = {"t": np.array(target, np.int64), "w": weight}
    return make_model(nodes, {"x": (batch, 3, 4)}, constants=constants)


# Names


def test_layers_carry_node_names_which_are_unique(make_model):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="act"),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("HardSigmoid", ["b"], ["c"], name="act"),
        helper.make_node("Abs", ["c"], ["y"], name="act_1"),
    ]
    graph = load_onnx(make_model(nodes, {"x": ("N", 3)}))
    assert names_of(graph) == ["act", "Neg_1", "act_2", "act_2", "act_2", "act_1"]


def test_graph_is_named_after_its_file(tmp_path, make_model):
    path = tmp_path / "net.onnx"
    onnx.save_model(make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 3)}), path)
    graph = load_onnx(path)
    assert (graph.name, graph.level) == ("net", "L0")
    assert (graph.input_names, graph.output_names) == (("x",), ("y",))
    assert load_onnx(path, name="other").name == "other"


def test_equal_files_have_equal_fingerprints(make_model):
    model = dense_model(make_model, "N", (0, -1))
    first = load_onnx(model).fingerprint()
    assert first == load_onnx(model).fingerprint()
    weight = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight[0, 0] += 1
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert first != load_onnx(model).fingerprint()


# Batch


@pytest.mark.parametrize("batch", ["N", "batch", None])
def test_open_batch_is_symbolic(make_model, compare, batch):
    graph = compare(dense_model(make_model, batch, (-1, 12)))
    assert graph.inputs == [("x", (None, 3, 4), "float32")]
    assert graph.outputs == [("y", (None, 5), "float32")]


def test_inputs_share_one_batch(make_model, compare):
    node = helper.make_node("Add", ["x", "z"], ["y"])
    graph = compare(make_model([node], {"x": ("a", 3), "z": ("b", 3)}))
    first, second = (parameter.ty.shape.values[0] for parameter in graph.main.params)
    assert first.same_as(second)


def test_fixed_batch_of_one_becomes_symbolic(make_model, compare):
    graph = compare(dense_model(make_model, 1, (1, -1)))
    assert graph.inputs == [("x", (None, 3, 4), "float32")]
    assert graph.outputs == [("y", (None, 5), "float32")]


BATCH_USERS = {
    "squeeze": [helper.make_node("Squeeze", ["x", "zero"], ["y"])],
    "reduce": [helper.make_node("ReduceMax", ["x"], ["y"], axes=[0])],
    "softmax": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
    "concat": [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
    "gather": [helper.make_node("Gather", ["x", "zero"], ["y"], axis=0)],
    "transpose": [helper.make_node("Transpose", ["x"], ["y"])],
    "reshape": [helper.make_node("Reshape", ["x", "flat"], ["y"])],
}


@pytest.mark.parametrize("case", BATCH_USERS)
def test_fixed_batch_stays_where_the_model_makes_use_of_it(make_model, compare, case):
    constants = {"zero": np.array([0], np.int64), "flat": np.array([12], np.int64)}
    graph = compare(make_model(BATCH_USERS[case], {"x": (1, 3, 4)}, constants=constants))
    assert graph.inputs == [("x", (1, 3, 4), "float32")]


def test_constant_with_the_batch_in_front_is_joined_to_every_sample(make_model, compare):
    node = helper.make_node("Concat", ["token", "x"], ["y"], axis=1)
    model = make_model([node], {"x": (1, 3, 4)}, constants={"token": np.ones((1, 1, 4), "f")})
    assert compare(model).outputs == [("y", (None, 4, 4), "float32")]


def test_other_fixed_batches_stay(make_model, compare):
    graph = compare(dense_model(make_model, 4, (4, 12)))
    assert graph.inputs == [("x", (4, 3, 4), "float32")]


def test_batch_can_be_bound(make_model, compare):
    graph = compare(dense_model(make_model, "N", (0, -1)), input_shapes={"x": (3, 3, 4)})
    assert graph.inputs == [("x", (3, 3, 4), "float32")]


@pytest.mark.parametrize(("declared", "target"), [(10, (10, 12)), (10, (-1, 12)), (1, (1, -1))])
def test_another_batch_than_the_files(make_model, declared, target):
    """The shape that flattens says the batch, too."""
    model = dense_model(make_model, declared, target)
    graph = load_onnx(model, input_shapes={"x": (2, 3, 4)})
    assert graph.inputs == [("x", (2, 3, 4), "float32")]
    assert graph.outputs == [("y", (2, 5), "float32")]
    x = np.random.default_rng(0).standard_normal((declared, 3, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (expected,) = session.run(None, {"x": x})
    found = Twin(graph.module)(torch.from_numpy(np.concatenate([x, x])[:2]))
    np.testing.assert_allclose(found.detach(), np.concatenate([expected, expected])[:2], rtol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Reshape", ["x", "merged"], {})], r"Reshape_0 \(Reshape\): it reshapes \(N, 3, 4\)"),
        ([("Add", ["x", "each"], {})], r"shapes \(N, 3, 4\) and \(10, 1, 1\) do not broadcast"),
        ([("Softmax", ["x"], {"axis": 0})], "it works along the batch axis"),
        ([("Transpose", ["x"], {"perm": [1, 0, 2]})], "does not begin with the batch"),
    ],
)
def test_a_batch_that_the_model_makes_use_of_stays(make_model, nodes, reason):
    made = [helper.make_node(kind, names, ["y"], **options) for kind, names, options in nodes]
    constants = {"merged": np.array([30, 4]), "each": np.ones((10, 1, 1), np.float32)}
    model = make_model(made, {"x": (10, 3, 4)}, constants=constants)
    load_onnx(model)
    with pytest.raises(
        UnsupportedModelError, match=f"(?s)batch of 10 .* cannot become 2: .*{reason}"
    ):
        load_onnx(model, input_shapes={"x": (2, 3, 4)})


def test_all_inputs_get_the_same_batch(make_model):
    node = helper.make_node("Add", ["a", "b"], ["y"])
    model = make_model([node], {"a": (10, 3), "b": (10, 3)})
    with pytest.raises(ModelError, match=r"from 10 to 2; give the same .* 'a' \(2, 3\), 'b' \(10"):
        load_onnx(model, input_shapes={"a": (2, 3)})
    graph = load_onnx(model, input_shapes={"a": (2, 3), "b": (2, 3)})
    assert [shape for _, shape, _ in (*graph.inputs, *graph.outputs)] == [(2, 3)] * 3


# Input shapes and types


def test_open_dimensions_are_bound(make_model, compare):
    node = helper.make_node("GlobalAveragePool", ["x"], ["y"])
    model = make_model([node], {"x": ("N", 3, "height", None)})
    graph = compare(model, input_shapes={"x": (None, 3, 6, 5)})
    assert graph.inputs == [("x", (None, 3, 6, 5), "float32")]


BAD_SHAPES = {
    r"dimension 2 \('height'\) is left open; .*input_shapes=\{'x': \(None, 3, 224, 224\)\}": {},
    "dimension 3 is left open": {"x": (None, 3, 4, None)},
    "names 'image', but the inputs .* are x": {"image": (None, 3, 4, 4)},
    r"has 4 dimensions, input_shapes \(--input-shape\) gives 3": {"x": (3, 4, 4)},
    "dimension 2 = 0, expected 1 to": {"x": (None, 3, 0, 4)},
}


@pytest.mark.parametrize("message", BAD_SHAPES)
def test_bad_input_shapes(make_model, message):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 3, "height", None)})
    with pytest.raises(ModelError, match=message):
        load_onnx(model, input_shapes=BAD_SHAPES[message])


def test_another_size_than_the_files_is_taken_where_the_model_makes_no_use_of_it(make_model):
    weight = np.ones((2, 3, 1, 1), np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    model = make_model(nodes, {"x": (10, 3, 32, 32)}, constants={"w": weight})
    graph = load_onnx(model, input_shapes={"x": (10, 3, 48, 40)})
    assert graph.inputs == [("x", (10, 3, 48, 40), "float32")]
    assert graph.outputs == [("y", (10, 2, 48, 40), "float32")]
    with pytest.raises(UnsupportedModelError, match=r"conv \(Conv\): its weight has shape"):
        load_onnx(model, input_shapes={"x": (10, 4, 32, 32)})


def test_input_of_no_elements(make_model):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 0, 4)})
    with pytest.raises(ModelError, match="input 'x' has dimension 1 = 0, expected a number > 0"):
        load_onnx(model)


@pytest.mark.parametrize("batch", [-1, 0])
def test_dimensions_that_exporters_leave_open_by_a_number(make_model, compare, batch):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 3, -1)})
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    with pytest.raises(ModelError, match=r"dimension 2 is left open; .*--input-shape x=\?,64,64"):
        load_onnx(model)
    graph = load_onnx(model, input_shapes={"x": (None, 3, 5)})
    assert graph.inputs == [("x", (None, 3, 5), "float32")]


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_initialisers_may_be_listed_as_inputs(make_model, compare, opset):
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32)}
    constants |= {n: rng.uniform(0.5, 1.5, 4).astype(np.float32) for n in "gbmv"}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", *"gbmv"], ["y"]),
    ]
    model = make_model(nodes, {"x": ("N", 3, 5, 5)}, constants=constants, opset=opset)
    listed = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in constants.items()
    ]
    model.graph.input.extend(listed)
    graph = compare(model)
    assert graph.inputs == [("x", (None, 3, 5, 5), "float32")]


def test_input_without_a_shape(make_model, compare):
    model = make_model([helper.make_node("Relu", ["x"], ["y"])], {"x": ("N", 3)})
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' has no shape; give its shape"):
        load_onnx(model)
    compare(model, input_shapes={"x": (None, 3)})


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "bool"]
)
def test_integer_input(make_model, dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    model = make_model([node], {"x": ("N", 3)}, element=element, output_element=TensorProto.FLOAT)
    assert load_onnx(model).inputs == [("x", (None, 3), dtype)]


def test_input_of_a_type_that_no_library_takes(make_model):
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    model = make_model([node], {"x": ("N", 3)}, element=TensorProto.UINT64)
    with pytest.raises(ModelError, match="input 'x' has type uint64, expected one of float32, u"):
        load_onnx(model)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_point_types_become_float32(make_model, dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = np.random.default_rng(1).standard_normal((4, 3, 1, 1)).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["x"], ["c"], to=element),
        helper.make_node("Conv", ["c", "w"], ["a"]),
        helper.make_node("Clip", ["a", "low"], ["y"]),
    ]
    constants = {"w": weight, "low": np.array(-0.5, dtype)}
    model = make_model(nodes, {"x": ("N", 3, 4, 5)}, constants=constants, element=element)
    graph = load_onnx(model)
    assert graph.inputs[0][2] == graph.outputs[0][2] == "float32"
    constant = graph.main.body.blocks[0].bindings[0].value.args[1].value.numpy()
    np.testing.assert_array_equal(constant, weight.astype(np.float32))


def test_bfloat16_weights(make_model):
    tensor = helper.make_tensor("w", TensorProto.BFLOAT16, [3], [1.0, -0.5, 3.0])
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    model = make_model([node], {"x": ("N", 3)}, constants={"w": tensor}, element=16)
    constant = load_onnx(model).main.body.blocks[0].bindings[0].value.args[1].value.numpy()
    np.testing.assert_array_equal(constant, np.array([1.0, -0.5, 3.0], np.float32))


# Exporters


class Network(nn.Module):
    """Convolutions with and without normalization, a residual, gates, pooling, a dense layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Hardsigmoid())
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = nn.functional.relu6(self.stem(x))
        x = x + nn.functional.hardswish(self.depthwise(x))
        x = x * self.gate(x)
        wide = self.up(nn.functional.max_pool2d(x, 3, 2, 1))
        x = torch.cat([x[:, :4], nn.functional.interpolate(wide, scale_factor=1.0)], 1)
        x = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)).softmax(-1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = Network().train()
    with torch.no_grad():
        net(torch.randn(8, 3, 16, 16))
    return net.eval()


def export(network, path, style, opset, batch):
    image = torch.zeros(batch or 2, 3, 16, 16)
    options = {"opset_version": opset, "input_names": ["x"], "output_names": ["y"]}
    if style == "dynamo":
        shapes = None if batch else ({0: torch.export.Dim("n")},)
        torch.onnx.export(
            network, (image,), path, dynamo=True, dynamic_shapes=shapes, verbose=False, **options
        )
    else:
        axes = None if batch else {"x": {0: "n"}}
        torch.onnx.export(network, (image,), path, dynamo=False, dynamic_axes=axes, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("style", "opset", "batch"),
    [
        ("torchscript", 11, None),
        ("torchscript", 13, 1),
        ("torchscript", 17, None),
        ("torchscript", 21, 1),
        ("dynamo", 18, None),
        ("dynamo", 21, 1),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (
                ("torchscript", 11, 1),
                ("torchscript", 13, None),
                ("torchscript", 17, 1),
                ("torchscript", 21, None),
                ("dynamo", 18, 1),
                ("dynamo", 21, None),
            )
        ),
    ],
)
def test_both_torch_exporters(tmp_path, network, compare, style, opset, batch):
    path = tmp_path / "net.onnx"
    export(network, path, style, opset, batch)
    graph = compare(onnx.load_model(path))
    assert graph.inputs == [("x", (None, 3, 16, 16), "float32")]
    assert graph.outputs == [("y", (None, 5), "float32")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [12, 14, 15, 16, 19, 20])
def test_opsets_between(tmp_path, network, compare, opset):
    path = tmp_path / "net.onnx"
    export(network, path, "torchscript", opset, None)
    model = onnx.load_model(path)
    assert model.opset_import[0].version == opset
    compare(model)


@pytest.mark.parametrize(("style", "fold_bn"), [("torchscript", False), ("dynamo", True)])
def test_normalization_folded_by_the_exporter_or_by_us(
    tmp_path, network, compare, operators, style, fold_bn
):
    path = tmp_path / "net.onnx"
    export_onnx(network, path, (3, 16, 16), style=style, opset=18, fold_bn=fold_bn)
    model = onnx.load_model(path)
    kept = sum(node.op_type == "BatchNormalization" for node in model.graph.node)
    assert kept == (0 if fold_bn else 1)
    imported = operators(compare(model))
    assert ("nn.batch_norm" in imported) == (not fold_bn)


# Real networks


# those that are imported in every run: of every operator that the others have
IMPORTED = {
    "torchscript": (
        "inceptionv3", "mobilenetv3-small", "densenet121", "unet", "unet-resize",
        "reactnet20-cifar",
    ),
    "dynamo": ("unet",),  # this exporter takes seconds
}  # fmt: skip
EXPORTS = [
    *((name, "torchscript") for name in models.names()),
    *(
        (name, "dynamo")
        for name in ("resnet50", "mobilenetv2", "mobilenetv3-small", "unet", "reactnet20-cifar")
    ),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "style"),
    [
        pytest.param(name, style, marks=() if name in IMPORTED[style] else pytest.mark.slow)
        for name, style in EXPORTS
    ],
)
def test_known_architectures(tmp_path, name, style):
    """The torch twin of the graph computes what ONNX Runtime does, in exports of both styles."""
    size = {"inceptionv3": 75, "quicknet-small": 96}.get(name, 32)
    opset, fold_bn = (18, False) if style == "dynamo" else (11, True)
    path = tmp_path / "net.onnx"
    models.export(
        name, path, style=style, opset=opset, image_size=size, fold_bn=fold_bn, num_classes=10
    )
    graph = load_onnx(path)
    images = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": images})
    with torch.no_grad():
        found = Twin(graph.module).eval()(torch.from_numpy(images))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "name",
    [pytest.param("squeezenet1.1-imagenet", marks=pytest.mark.slow), "resnet20-cifar10"],
)
def test_real_networks(shared_dir, compare, operators, name):
    path = shared_dir / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    graph = compare(onnx.load_model(path), tolerance=1e-4)
    assert "reshape" not in operators(graph)[:-3]
