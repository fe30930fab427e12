"""A device of TVM's RPC runs and times libraries; it has TVM's runtime and nothing of tvmquant."""

import os
import signal
import subprocess

import numpy as np
import pytest

import tvmquant
from tests.rpc_devices import LOOPBACK, PYTHON, bare_environment, kill, running_devices
from tvmquant.benchmark import measure, runner
from tvmquant.deploy.compiler import find_linker
from tvmquant.deploy.loader import Model
from tvmquant.deploy.remote import check_machine, open_device
from tvmquant.devices.device import TimedRunner, seconds_of
from tvmquant.devices.host import host_features
from tvmquant.devices.probe import build_probe
from tvmquant.devices.rpc import RpcDevice
from tvmquant.devices.tracker import Tracker
from tvmquant.errors import DeviceError, TargetError
from tvmquant.machine import Machine

MACHINE = Machine.of("haswell", 1)


@pytest.fixture(scope="module")
def board(tracker_port):
    with running_devices(tracker_port, "board", 2):
        yield Tracker(LOOPBACK, tracker_port, "board", wait_seconds=60)


@pytest.fixture(scope="module")
def library(tmp_path_factory, small_onnx, small_data):
    graph = tvmquant.load_onnx(small_onnx)
    quantized = tvmquant.quantize(graph, tvmquant.calibrate(graph, np.load(small_data)["images"]))
    folder = tmp_path_factory.mktemp("library") / "small"
    tvmquant.build(quantized, target=MACHINE, out=folder)
    return folder


@pytest.fixture(scope="module")
def device(board):
    with open_device(board, MACHINE) as device:
        yield device


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype("float32")


def test_a_device_needs_only_the_runtime_of_tvm():
    code = (
        "import importlib.util as u, tvm, tvm.base; "
        "there = [name for name in ('tvmquant', 'torch', 'onnx') if u.find_spec(name)]; "
        "print(tvm.base._RUNTIME_ONLY, there)"
    )
    with bare_environment() as environment:
        found = subprocess.run(
            [PYTHON, "-c", code], env=environment, cwd="/", check=True, capture_output=True
        )
    assert found.stdout.decode().strip() == "True []"


def test_it_computes_what_this_machine_does(device, library, image):
    there, here = Model(library, device=device), Model(library)
    np.testing.assert_array_equal(there(image), here(image))
    raw = [np.arange(192, dtype=here.inputs[0].raw_dtype).reshape(here.inputs[0].raw_shape)]
    there, here = (Model(library, device=d, raw=True) for d in (device, None))
    np.testing.assert_array_equal(there(*raw), here(*raw))


def test_several_outputs_come_in_order(device, tmp_path, branches_onnx, branches_data):
    graph = tvmquant.load_onnx(branches_onnx)
    images = np.load(branches_data)
    tvmquant.build(
        tvmquant.quantize(graph, tvmquant.calibrate(graph, images)),
        target=MACHINE,
        out=tmp_path / "b",
    )
    there, here = Model(tmp_path / "b", device=device), Model(tmp_path / "b")
    found, expected = there(images[:1]), here(images[:1])
    assert type(found) is type(expected)
    for one, other in zip(np.atleast_1d(found), np.atleast_1d(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_runners_of_one_library_keep_their_inputs_apart(device, library, image):
    model = Model(library, device=device)
    first, second = model.bind(image), model.bind(-image)
    expected = first()[0]
    assert not np.array_equal(second()[0], expected)
    np.testing.assert_array_equal(first()[0], expected)


def test_its_own_clock_times_it(device, library, image, monkeypatch):
    model = Model(library, device=device)
    run = runner(model, [image])
    assert isinstance(run, TimedRunner)
    assert 0 < seconds_of(run) < 1
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # this machine's stands still
    latency = measure(model, [image], repeats=3, warmup=1)
    assert len(latency.seconds) == 3
    assert latency.min_ms > 0


def test_every_kernel_call_is_timed_there(device, library, image):
    there, here = (Model(library, device=d).profile(image, repeats=3) for d in (device, None))
    assert [info for info, _ in there] == [info for info, _ in here]
    assert all(0 < seconds < 1 for _, seconds in there)


def test_its_features_are_asked_for(device, board):
    assert device.features() == host_features()
    assert device.name == "rpc:board"
    check_machine(MACHINE, board)
    with pytest.raises(DeviceError, match=r"rpc:board lacks .*xop, which.*--target"):
        # of processors that nobody builds any more
        check_machine(Machine.of("llvm -mcpu=haswell -mattr=+xop,+fma4", 1), board)


def test_a_device_that_does_not_tell_its_features_is_trusted(board, monkeypatch, caplog):
    with open_device(board, MACHINE) as device:
        monkeypatch.setattr(device, "call", lambda *_: "")
        assert device.features() == frozenset()
    assert "does not tell the features" in caplog.text


def test_the_number_of_threads_is_that_of_the_library(device, library):
    with pytest.raises(DeviceError, match=r"computes with 1 threads instead of 5.*--threads 1"):
        Model(library, device=device, threads=5)
    device.use_threads(1)


def test_what_it_cannot_load_leaves_it_usable(device, library, image, tmp_path):
    broken = tmp_path / "model.so"
    broken.write_bytes(b"not machine code")
    with pytest.raises(RuntimeError):
        device.load(broken)
    assert Model(library, device=device)(image).shape == (1, 10)


@pytest.fixture
def probe(tmp_path):
    build_probe(tmp_path / "probe.so", find_linker(MACHINE.target))
    return tmp_path / "probe.so"


def test_a_device_that_is_lost_is_an_error(tracker_port, probe, library, image):
    tracker = Tracker(LOOPBACK, tracker_port, "doomed", wait_seconds=60)
    with (
        running_devices(tracker_port, "doomed", 1) as servers,
        RpcDevice(tracker, probe) as device,
    ):
        run = Model(library, device=device).bind(image)
        assert run.seconds() > 0
        kill(servers[0])
        with pytest.raises(DeviceError, match=r"rpc:doomed .* was lost while timing 'main'"):
            run.seconds()
    with pytest.raises(DeviceError, match="holds no device of key 'doomed'"):
        RpcDevice(tracker, probe)


def test_a_device_that_falls_silent_is_given_up(tracker_port, probe, library, image):
    tracker = Tracker(LOOPBACK, tracker_port, "silent", wait_seconds=60)
    with (
        running_devices(tracker_port, "silent", 1) as servers,
        RpcDevice(tracker, probe) as device,
    ):
        run = Model(library, device=device).bind(image)
        run()
        device._limit = 2.0
        os.killpg(servers[0].pid, signal.SIGSTOP)
        with pytest.raises(
            DeviceError, match=r"was lost while running 'main' \(no answer within 2 s"
        ):
            run()


def test_a_device_that_is_in_use_is_waited_for(board, device, probe):
    busy = Tracker(board.host, board.port, board.key, wait_seconds=1)
    with RpcDevice(board, probe) as other:
        assert other.name == device.name
        with pytest.raises(DeviceError, match=r"no device rpc:board .* was free within 1 s"):
            RpcDevice(busy, probe)


@pytest.mark.parametrize("foreign", ["architecture", "features"])
def test_without_a_tracker_this_machine_has_to_run_the_code(monkeypatch, foreign):
    check_machine(Machine.of(), None)
    if foreign == "architecture":
        monkeypatch.setattr("platform.machine", lambda: "riscv64")
    else:
        monkeypatch.setattr("tvmquant.devices.cpu.host_features", lambda: frozenset({"fpu"}))
    with pytest.raises(TargetError, match=r"--rpc HOST:PORT --rpc-key KEY.*--plan"):
        check_machine(Machine.of(), None)
