"""The file: its nodes, names, types and metadata, and what is refused."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import tvmquant
from tests.tvmquant.export.graphs import checked, choices_of, initialisers, nodes_of
from tvmquant.allocation import Plan
from tvmquant.errors import DataError, ModelError, QuantizationError
from tvmquant.export import to_onnx
from tvmquant.layers import quantizable_layers
from tvmquant.levels import annotated
from tvmquant.quantization import apply_calibration


def exported(network, choice=None, **options):
    graph, calibration, _ = network
    network = apply_calibration(graph, calibration, choices=choices_of(graph, choice))
    return checked(network, **options)


def test_layers_inputs_and_outputs_keep_their_names(layers):
    graph = layers[0]
    model = exported(layers).model
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    kinds = {node.name: node.op_type for node in model.graph.node}
    wanted = {"conv2d": "Conv", "depthwise_conv2d": "Conv", "conv2d_transpose": "ConvTranspose",
              "dense": "Gemm"}  # fmt: skip
    for layer in quantizable_layers(graph):
        assert kinds[layer.id] == wanted[layer.op]
    assert [value.name for value in model.graph.input] == list(graph.input_names)
    assert [value.name for value in model.graph.output] == list(graph.output_names)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "N"


def test_metadata_tell_the_choices_the_plan_and_the_differences(layers):
    graph, calibration, _ = layers
    choices = choices_of(graph, "w4a8")
    plan = Plan(
        model=graph.name,
        fingerprint=graph.fingerprint(),
        layers={name: {"choice": str(choice)} for name, choice in choices.items()},
    )
    network = apply_calibration(graph, calibration, choices=choices)
    found = checked(network, opset=20, plan=plan)
    props = {prop.key: prop.value for prop in found.model.metadata_props}
    assert props["tvmquant.ties"] == "up"
    assert props["tvmquant.version"] == found.model.producer_version == tvmquant.__version__
    assert found.model.producer_name == "tvmquant"
    assert json.loads(props["tvmquant.layers"]) == dict.fromkeys(choices, "w4a8")
    assert Plan.model_validate_json(props["tvmquant.plan"]) == plan
    differences = json.loads(props["tvmquant.differences"])
    assert tuple(differences) == found.differences
    assert any("16 bits" in text and "leaves these float" in text for text in differences)


@pytest.mark.parametrize(
    ("opset", "packs", "kind", "output"),
    [(21, True, "INT4", "INT16"), (21, False, "INT8", "INT16"), (20, True, "INT8", "FLOAT")],
)
def test_types_are_those_of_the_operator_set(layers, opset, packs, kind, output):
    model = exported(layers, "w4a8", opset=opset, packs=packs).model
    constants = initialisers(model)
    weights = [c for name, c in constants.items() if name.endswith(".weight/integers")]
    assert len(weights) == len(quantizable_layers(layers[0]))
    assert {TensorProto.DataType.Name(c.data_type) for c in weights} == {kind}
    zeros = {TensorProto.DataType.Name(constants[node.input[2]].data_type)
             for node in nodes_of(model, "QuantizeLinear")}  # fmt: skip
    assert zeros == ({"UINT8"} if output == "FLOAT" else {"UINT8", output})


def test_biases_are_float_or_steps_of_the_accumulator(layers):
    floats, integers = (exported(layers, bias=bias).model for bias in ("float", "int32"))
    stem = quantizable_layers(layers[0])[0].id
    names = [next(n for n in m.graph.node if n.name == stem).input[2] for m in (floats, integers)]
    bias = numpy_helper.to_array(initialisers(floats)[names[0]])
    assert bias.dtype == np.float32
    dequantize = next(n for n in integers.graph.node if names[1] in n.output)
    steps, scale = (
        numpy_helper.to_array(initialisers(integers)[name]) for name in dequantize.input
    )
    assert (dequantize.op_type, steps.dtype) == ("DequantizeLinear", np.int32)
    assert np.all(np.abs(steps * scale.astype(np.float64) - bias) <= scale / 2)


def test_the_file_is_what_was_made_and_appears_whole(layers, tmp_path):
    graph, calibration, _ = layers
    network = apply_calibration(graph, calibration)
    path = tmp_path / "net.qdq.onnx"
    made = tvmquant.export_onnx(network, path)
    assert onnx.load(path) == made.model
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(DataError, match="cannot be written"):
        tvmquant.export_onnx(network, tmp_path / "missing" / "net.onnx")


@pytest.mark.parametrize("opset", [12, 26])
def test_an_opset_out_of_range_is_refused(layers, opset):
    with pytest.raises(ModelError, match=f"opset {opset}: expected 13, .*, to 25"):
        exported(layers, opset=opset)


def test_an_opset_beyond_the_onnx_package_is_refused(layers, monkeypatch):
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 23)
    with pytest.raises(ModelError, match="knows opsets up to 23"):
        exported(layers, opset=24)


def test_graphs_of_other_levels_are_refused(layers):
    graph = layers[0]
    with pytest.raises(QuantizationError, match=r"level L0; expected an annotated one \(L1\)"):
        to_onnx(graph)
    with pytest.raises(QuantizationError, match=r"no scale|not calibrated"):
        to_onnx(annotated(graph))
    with pytest.raises(QuantizationError, match="bias 'int8'; expected float or int32"):
        exported(layers, bias="int8")
