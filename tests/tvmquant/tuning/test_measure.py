"""Building and timing kernels in worker processes, here and on the devices of a tracker."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tvm.support.popen_pool import PopenWorker

from tests.rpc_devices import LOOPBACK, free_port, kill, running_devices
from tests.tvmquant.tuning.kernels import conv, depthwise
from tests.warm_workers import COLD_START
from tvmquant.devices.tracker import Tracker
from tvmquant.errors import DeviceError
from tvmquant.machine import Machine
from tvmquant.tuning import worker
from tvmquant.tuning.database import Database
from tvmquant.tuning.measure import Artifact, Candidate, DeviceRunner, HostRunner, KernelBuilder
from tvmquant.tuning.tuner import Tuner, count


class Abort:
    """Ends the process that unpickles it, as LLVM does where it cannot select an instruction."""

    def __reduce__(self):
        return os.abort, ()


class Borrowed:
    """A builder or runner that a tuner does not close."""

    def __init__(self, lender):
        self._lender = lender

    def __getattr__(self, name):
        return (lambda: None) if name == "close" else getattr(self._lender, name)


def candidates(*workloads, each=1):
    machine = Machine.of("native", 1)
    return [
        Candidate(workload, tiling)
        for workload in workloads
        for tiling in list(workload.tilings(machine).values())[:each]
    ]


@pytest.fixture(scope="module")
def builder():
    builder = KernelBuilder(Machine.of("native"))
    yield builder
    builder.close()


@pytest.fixture(scope="module")
def host():
    runner = HostRunner(threads=1)
    yield runner
    runner.close()


@pytest.fixture
def artifacts(builder):
    return builder.build(candidates(conv(), depthwise(), each=3))


def test_kernels_are_built_and_timed(artifacts, host):
    assert [type(a) for a in artifacts] == [Artifact] * 6
    outcomes = dict(host.measure(artifacts))
    assert sorted(outcomes) == list(range(6))
    for outcome in outcomes.values():
        found = outcome.statistics()
        assert outcome.error is None
        assert 0 < found["seconds"] <= found["median"] < 1
        assert found["repeats"] == len(outcome.seconds) >= 16


def test_what_crashes_the_compiler_or_cannot_be_scheduled_costs_one_candidate(builder):
    workload = conv()
    (good,) = candidates(workload)
    built = builder.build([Candidate(workload, Abort()), good, Candidate(workload, None), good])
    assert [type(b) for b in built[1::2]] == [Artifact] * 2
    assert "the compiler died" in built[0].error
    assert "building failed: " in built[2].error


def test_what_crashes_when_it_runs_costs_one_candidate(artifacts, host, tmp_path):
    source = tmp_path / "crash.cc"
    source.write_text(
        "#include <stdlib.h>\n__attribute__((constructor)) static void f() { abort(); }\n"
    )
    library = tmp_path / "crash.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", library, source], check=True)
    broken = Artifact(library, artifacts[0].arguments)
    outcomes = dict(host.measure([artifacts[0], broken, artifacts[1]]))
    assert outcomes[0].error is outcomes[2].error is None
    assert outcomes[1].error.startswith("running failed: ")


def test_the_thread_count_is_that_of_the_table(artifacts):
    with pytest.raises(RuntimeError, match="computes with 3 threads there instead of 2"):
        worker._check_threads(3, 2)
    assert artifacts


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "float32"])
def test_arguments_are_of_their_type_and_shifts_are_valid(dtype):
    values = worker.fill(dtype, (40, 50), np.random.default_rng(0))
    assert values.dtype == dtype
    assert len(np.unique(values)) > 10
    if dtype in ("int32", "int64"):
        assert values.min() >= 1
        assert values.max() < 32


def test_times_are_settled_when_the_least_agree():
    assert worker.settled([1.0, 1.005, 1.002, 1.009, 7.0])
    assert not worker.settled([1.0, 1.005, 1.002, 1.02, 7.0])
    assert not worker.settled([1.0])


@pytest.mark.usefixtures("brief_tuning")
def test_a_farm_measures_until_its_last_device_is_lost(tracker_port, builder, tmp_path):
    machine = Machine.of("native", 1)
    workloads = count([conv(), depthwise()])
    with running_devices(tracker_port, "farm", 2) as servers:
        farm = Tracker(LOOPBACK, tracker_port, "farm", wait_seconds=4)
        runner = DeviceRunner(farm, threads=1, session_seconds=8)
        database = Database(tmp_path, machine, cpu=runner.cpu)
        borrowed = {"builder": Borrowed(builder), "runner": Borrowed(runner)}
        done = Tuner(database, workloads, **borrowed).run(trials=6)
        assert (done.trials, done.failed) == (6, 0)
        assert {r.cpu for r in database.records()} == {"rpc:farm"}
        assert all(database.default(workload.key) for workload in workloads)

        artifacts = builder.build(candidates(conv(), depthwise(), each=3))
        # one of two is lost in mid-run: the other one measures what it had begun
        outcomes = {}
        for index, outcome in runner.measure(artifacts):
            if not outcomes:
                kill(servers[0])
            outcomes[index] = outcome
        assert sorted(outcomes) == list(range(len(artifacts)))
        assert all(outcome.error is None for outcome in outcomes.values())

        rest = runner.measure(artifacts)
        assert next(rest)[1].error is None
        kill(servers[1])
        with pytest.raises(DeviceError, match="holds no device of key 'farm'"):
            list(rest)


def test_an_unreachable_tracker_and_an_unknown_key_are_errors(tracker_port):
    port = free_port()
    with pytest.raises(DeviceError, match=rf"no RPC tracker answers at {LOOPBACK}:{port}"):
        DeviceRunner(Tracker(LOOPBACK, port, "board"), 1)
    with pytest.raises(DeviceError, match="holds no device of key 'nothing'"):
        DeviceRunner(Tracker(LOOPBACK, tracker_port, "nothing"), 1)


def test_builders_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(PopenWorker, "_start", COLD_START)
    builder = KernelBuilder(Machine.of("native"), workers=1)
    (artifact,) = builder.build(candidates(conv()))
    assert artifact.path.is_file()
    builder.close()
    assert not Path(artifact.path).parent.exists()
