"""Networks for a device that is not this machine: built and decided on here, measured there.

The device's process has TVM's runtime alone (`tests.rpc_devices`). This process says that its own
processor has no features, so that it runs nothing of what it compiles.
"""

import pytest

import tvmquant
from tests.rpc_devices import LOOPBACK, running_devices
from tvmquant.bit_choice import W8A8
from tvmquant.errors import ArtifactError, DeviceError, TargetError
from tvmquant.machine import Machine
from tvmquant.mixed_precision import MixedPrecisionRecord, Wishes
from tvmquant.network_latency import NetworkLatency
from tvmquant.tuning import Database

KEY = "board"
TARGET = "haswell"


@pytest.fixture(scope="module")
def address(tracker_port):
    with running_devices(tracker_port, KEY, 1):
        yield f"{LOOPBACK}:{tracker_port}"


@pytest.fixture
def foreign(monkeypatch):
    """Let this machine run nothing."""
    monkeypatch.setattr("tvmquant.devices.cpu.host_features", lambda: frozenset({"fpu"}))


@pytest.mark.usefixtures("foreign", "brief_timing", "brief_tuning")
def test_from_tuning_to_a_library_all_is_measured_on_the_device(
    address, branches_onnx, branches_data, tmp_path
):
    there = {"target": TARGET, "threads": 1, "rpc": address, "rpc_key": KEY}

    # kernels
    table = tmp_path / "table"
    tuned = tvmquant.tune(
        tvmquant.load_onnx(branches_onnx), table, **there, choices=[W8A8],
        trials=1,
    )  # fmt: skip
    assert tuned.tuning.failed == 0
    records = Database(table, Machine.of(TARGET, 1), create=False, cpu=f"rpc:{KEY}").records()
    assert records
    assert {record.cpu for record in records} == {f"rpc:{KEY}"}

    # networks
    wishes = Wishes(size="0.9x", sensitivity="random")
    chosen = tvmquant.plan_onnx(
        branches_onnx, branches_data, wishes, out=tmp_path / "plan.json", table=table, **there
    )
    assert chosen.latency.device == f"rpc:{KEY}"
    assert all(ms > 0 for ms in chosen.latency.networks_ms.values())
    (kept,) = (tmp_path / "plan-measurements").glob("latency-*.json")
    assert NetworkLatency.load(kept) == chosen.latency

    # the library: measured, and compared with the float model
    out = tmp_path / "library"
    done = tvmquant.compile_onnx(
        branches_onnx, branches_data, out=out, wishes=wishes, table=table, **there
    )
    with pytest.raises(ArtifactError, match="lacks avx, avx2"):
        tvmquant.load(out)
    record = MixedPrecisionRecord.load(out / "mixed-precision.json")
    assert record == done.record
    assert record.device == f"rpc:{KEY}"
    assert record.chosen.measured_ms > 0
    assert all(point.measured_ms > 0 for point in record.uniform)
    assert done.outputs
    assert all(quality.sqnr_db > 10 for quality in done.outputs)
    # what it was built for is the same again
    again = tvmquant.compile_onnx(
        branches_onnx, branches_data, out=out, wishes=wishes, table=table, **there
    )
    assert again.up_to_date


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("function", ["tune", "plan", "compile"])
def test_without_a_device_a_foreign_target_is_refused(
    function, branches_onnx, branches_data, tmp_path
):
    call = {
        "tune": lambda: tvmquant.tune(
            tvmquant.load_onnx(branches_onnx), tmp_path / "t", target=TARGET
        ),
        "plan": lambda: tvmquant.plan_onnx(
            branches_onnx, branches_data, out=tmp_path / "plan.json", target=TARGET
        ),
        "compile": lambda: tvmquant.compile_onnx(
            branches_onnx, branches_data, out=tmp_path / "o", wishes=Wishes(), target=TARGET
        ),
    }[function]
    with pytest.raises(TargetError, match=r"--rpc HOST:PORT --rpc-key KEY"):
        call()
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_lacks_features_is_refused_before_anything_is_computed(
    address, branches_onnx, branches_data, tmp_path
):
    # of processors that nobody builds any more
    target = "llvm -mcpu=haswell -mattr=+xop"
    with pytest.raises(DeviceError, match=r"rpc:board lacks .*xop.*--target"):
        tvmquant.plan_onnx(
            branches_onnx, branches_data, out=tmp_path / "plan.json", target=target, threads=1,
            rpc=address, rpc_key=KEY,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_threads_of_a_device_must_be_given(branches_onnx, branches_data, tmp_path):
    with pytest.raises(TargetError, match="threads of a device are not known here"):
        tvmquant.compile_onnx(
            branches_onnx, branches_data, out=tmp_path / "o", rpc="127.0.0.1:9190", rpc_key=KEY
        )


def test_an_unreachable_tracker_is_told_before_anything_is_computed(
    branches_onnx, branches_data, tmp_path
):
    with pytest.raises(DeviceError, match=r"no RPC tracker answers at 127\.0\.0\.1:1 "):
        tvmquant.compile_onnx(
            branches_onnx, branches_data, out=tmp_path / "o", wishes=Wishes(), threads=1,
            rpc="127.0.0.1:1", rpc_key=KEY,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
