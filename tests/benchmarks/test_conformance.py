"""The table of ONNX's node tests: verdicts, reasons, and processes that die."""

import json
import os
import signal
import sys
import time

import numpy as np
import pytest
from onnx import TensorProto, helper

from benchmarks import __main__ as command
from benchmarks import conformance
from benchmarks.conformance_cases import Case, Verdict, compare, judge, read_cases, simulated
from benchmarks.conformance_reasons import FAMILIES, family_of, reason_of
from tvmquant.errors import DataError, QuantizationError
from tvmquant.progress import silent_stage

# Of every family some that pass and some that are refused.
SAMPLE = (
    "test_(abs|add_bcast|and2d|argmax_default_axis_example|attention_4d|averagepool_2d_ceil|basic_conv_with_"
    "padding|batchnorm_example|bernoulli|cast_FLOAT_to_DOUBLE|castlike_FLOAT_to_FLOAT16|celu|clip_expanded|concat_2d_axis_1|"
    "constant|convtranspose_pads|dropout_default|dynamicquantizelinear|equal_string|flatten_axis2|"
    "gather_1|gemm_all_attributes|gru_defaults|hardswish_expanded|identity_sequence|if|"
    "instancenorm_example|layer_normalization_2d_axis1|loop11|lstm_defaults|matmul_4d|"
    "maxpool_2d_dilations|mod_int64_fmod|nonmaxsuppression_flipped_coordinates|not_3d|"
    "onehot_with_axis|quantizelinear|reduce_l2_keep_dims_random|reshape_negative_dim|"
    "resize_upsample_scales_cubic|sce_mean|scan_sum|sequence_insert_at_front|slice_neg|"
    "softmax_large_number|split_equal_parts_2d|stft|strnormalizer_export_monday_empty_output|string_split_basic|"
    "tril|where_example)$"
)


def refuse(_graph, _inputs):
    raise QuantizationError("layer a: the simulator has no operator b")


def break_down(_graph, _inputs):
    raise ZeroDivisionError("of somebody else")


def die(_graph, _inputs):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(_graph, _inputs):
    time.sleep(60)


@pytest.fixture
def absolute():
    """A case of one operator."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    inputs = {"x": np.array([-1, 2], np.float32)}
    return Case("test_abs", "Abs", model, inputs, [np.array([1, 2], np.float32)], 1e-3, 1e-7)


def test_sample_of_every_family_passes_or_is_refused_by_name():
    cases = read_cases(SAMPLE)
    assert {family_of(case.operator) for case in cases} == FAMILIES.keys()
    verdicts = {case.name: judge(case, simulated) for case in cases}
    kinds = {verdict.kind for verdict in verdicts.values()}
    assert kinds == {"pass", "refused"}, verdicts
    assert verdicts["test_abs"] == Verdict("pass")
    assert verdicts["test_reshape_negative_dim"] == Verdict("pass", bound=True)
    assert "string" in verdicts["test_equal_string"].message


@pytest.mark.slow
def test_no_node_test_is_wrong_or_ends_in_a_foreign_error():
    rows = conformance.run(stage=silent_stage)
    failures = [(r["model"], r["message"]) for r in rows if r["verdict"] not in ("pass", "refused")]
    assert not failures
    assert "other" not in {row["family"] for row in rows}


@pytest.mark.parametrize(
    ("execute", "kind", "message"),
    [
        (lambda _graph, inputs: inputs, "WRONG", "differs by up to 2"),
        (refuse, "refused", "has no operator"),
        (break_down, "FOREIGN", "of somebody else"),
    ],
)
def test_verdict_says_what_went_wrong(absolute, execute, kind, message):
    verdict = judge(absolute, execute)
    assert verdict.kind == kind
    assert message in verdict.message


@pytest.mark.parametrize(("execute", "message"), [(die, "SIGKILL"), (hang, "more than 0.2 s")])
def test_process_that_dies_or_hangs_is_replaced(absolute, monkeypatch, execute, message):
    monkeypatch.setattr(conformance, "_judge_all", _judge_all_but_twos)
    with conformance.Judge(execute, timeout=30) as worker:
        assert worker.judge(absolute).kind == "pass"
        worker._timeout = 0.2 if execute is hang else 30
        verdict = worker.judge(Case("second", "Abs", absolute.model, {}, [], 0, 0))
        assert verdict.kind == "CRASH"
        assert message in verdict.message
        worker._timeout = 30
        assert worker.judge(absolute).kind == "pass"


def _judge_all_but_twos(pipe, execute):
    """Judge without an import of TVM, which takes seconds."""
    while True:
        case = pipe.recv()
        if case.name == "second":
            execute(None, None)
        pipe.send(Verdict("pass"))


def test_integers_must_be_equal_and_narrow_floats_near():
    expected = [np.array([1, 2], np.int64)]
    assert compare([np.array([1, 2], np.int64)], expected, 1e-3, 0) == ""
    assert "other integers" in compare([np.array([1, 3], np.int64)], expected, 1, 1)
    assert "expected int64" in compare([np.array([1, 2], np.int32)], expected, 0, 0)
    assert "1 outputs, expected 2" in compare(expected, expected * 2, 0, 0)
    half = [np.array([1, np.inf, np.nan], np.float16)]
    assert compare([np.array([1.0019, np.inf, np.nan], np.float32)], half, 1e-3, 0) == ""
    assert "differs" in compare([np.array([1.003, np.inf, np.nan], np.float32)], half, 1e-3, 0)


def test_reasons_leave_names_and_numbers_out():
    listed = "model 'm' has 2 nodes that tvmquant cannot import:\n  a (Pad): p={}\n  b (Abs): no"
    assert reason_of(listed.format(1)) == reason_of(listed.format(2)) == "p={}".format("..")
    assert reason_of("node 'a' is in training mode") == "training mode"
    assert family_of("Conv") == family_of("MatMul") != family_of("NoSuchOperator") == "other"


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "conformance", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


def test_command_prints_a_table_and_fails_with_what_is_wrong(tmp_path, monkeypatch, capsys):
    verdicts = iter([Verdict("pass"), Verdict("refused", "node 'a' is in training mode")] * 2)
    monkeypatch.setattr(conformance.Judge, "judge", lambda *_: next(verdicts))
    options = ("--only", "test_abs|test_dropout_default$", "--json", tmp_path / "rows.json")
    assert call(monkeypatch, *options) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["verdict"] for row in rows] == ["pass", "refused"]
    assert {row["reason"] for row in rows} == {"", "training mode"}
    printed = capsys.readouterr().out
    assert "activations" not in printed
    assert "training mode" in printed
    monkeypatch.setattr(conformance.Judge, "judge", lambda *_: Verdict("WRONG", "by 1"))
    assert call(monkeypatch, *options[:2]) == 1
    assert "by 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"only": "("}, "no regular expression"),
        ({"only": "nothing is called so"}, "matches no node test"),
        ({"executor": "abacus"}, "expected one of simulator, twin, library"),
    ],
)
def test_mistakes_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        conformance.run(stage=silent_stage, **options)
