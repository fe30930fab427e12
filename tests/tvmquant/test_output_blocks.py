"""Which parts of outputs are found, and how close each of them is."""

import numpy as np
import onnx
import pytest
from onnx import helper

from tvmquant.frontend import load_onnx
from tvmquant.output_blocks import find_blocks
from tvmquant.output_quality import OutputMeter, poor_outputs


def detector(nodes, shape, inputs=("boxes", "scores"), extents=((1, 4, 6), (1, 2, 6))):
    """Return a network of boxes (N, 4, 6) and scores (N, 2, 6)."""
    tensor = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info(name, tensor, ["N", *dims[1:]])
            for name, dims in zip(inputs, extents, strict=True)
        ],
        [helper.make_tensor_value_info("out", tensor, ["N", *shape])],
        [
            helper.make_tensor("size", onnx.TensorProto.INT64, [3], [0, 3, 12]),
            helper.make_tensor("two", tensor, [], [2.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return load_onnx(model)


PARTS = [
    helper.make_node("Relu", ["boxes"], ["b"], "head/boxes"),
    helper.make_node("Sigmoid", ["scores"], ["s"], "head/scores"),
]
JOINT = helper.make_node("Concat", ["b", "s"], ["joint"], "head/Concat", axis=1)


@pytest.mark.parametrize(
    ("rest", "shape", "take"),
    [
        ([helper.make_node("Identity", ["joint"], ["out"])], (6, 6), lambda x: x),
        (
            [
                helper.make_node("Mul", ["joint", "two"], ["twice"]),
                helper.make_node("Transpose", ["twice"], ["out"], perm=[0, 2, 1]),
            ],
            (6, 6),
            lambda x: x.transpose(0, 2, 1),
        ),
        ([helper.make_node("Reshape", ["joint", "size"], ["out"])], (3, 12), lambda x: x),
    ],
)
def test_parts_are_found_behind_what_moves_them(rest, shape, take):
    (blocks,) = find_blocks(detector([*PARTS, JOINT, *rest], shape))
    assert [block.name for block in blocks] == ["head/boxes", "head/scores"]
    joint = np.arange(2 * 6 * 6).reshape(2, 6, 6)
    output = take(joint).reshape(2, *shape)
    for block, part in zip(blocks, (joint[:, :4], joint[:, 4:]), strict=True):
        assert sorted(block.of(output).ravel()) == sorted(part.ravel())


def test_a_concat_of_a_concat_is_one_list_of_parts():
    nodes = [
        *PARTS,
        JOINT,
        helper.make_node("Concat", ["joint", "b"], ["out"], "outer", axis=1),
    ]
    (blocks,) = find_blocks(detector(nodes, (10, 6)))
    assert [block.name for block in blocks] == ["head/boxes", "head/scores", "head/boxes"]


def test_an_output_that_joins_nothing_has_no_parts():
    nodes = [
        *PARTS,
        JOINT,
        helper.make_node("ReduceMax", ["joint"], ["out"], "max", axes=[2], keepdims=1),
    ]
    assert find_blocks(detector(nodes, (6, 1))) == [[]]


def test_a_part_that_is_lost_is_named():
    nodes = [*PARTS, JOINT, helper.make_node("Identity", ["joint"], ["out"])]
    graph = detector(nodes, (6, 6))
    rng = np.random.default_rng(0)
    reference = np.concatenate([rng.uniform(0, 640, (3, 4, 6)), rng.uniform(0, 1, (3, 2, 6))], 1)
    result = np.rint(reference / 4) * 4
    result[:, 4:] = 0
    meter = OutputMeter(graph.output_names, find_blocks(graph))
    for item in range(3):
        meter.add([reference[item : item + 1]], [result[item : item + 1]])
    (quality,) = meter.qualities()
    boxes, scores = quality.blocks
    assert quality.sqnr_db > 40.0
    assert boxes.sqnr_db > 40.0
    assert boxes.constant is None
    assert (scores.sqnr_db, scores.constant) == (0.0, 0.0)
    (warning,) = poor_outputs([quality])
    assert warning.startswith("'head/scores', a part of output 'out': its values are all 0,")
    assert [block["sqnr_db"] for block in quality.to_dict()["blocks"]][1] == 0.0
