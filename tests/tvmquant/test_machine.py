"""A machine is one value: equal where what is compiled is equal, the same in another process."""

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import pytest

import tvmquant.machine
from tests.tvmquant.tuning.kernels import conv
from tvmquant.errors import TargetError
from tvmquant.machine import Caches, Machine

HASWELL = Machine.of("haswell", 2)


@pytest.mark.parametrize(
    "spec", ["llvm -mcpu=haswell", '{"mcpu": "haswell"}', {"mcpu": "haswell"}, HASWELL.target]
)
def test_equal_targets_are_one_machine(spec):
    assert Machine.of(spec, 2) == HASWELL
    assert len({Machine.of(spec, 2), HASWELL}) == 1


def test_what_differs_is_told_apart():
    others = [Machine.of("haswell", 3), Machine.of("skylake", 2), Machine.of("haswell", 2)]
    others[2] = replace(others[2], caches=Caches(second_level=1 << 20))
    assert len({HASWELL, *others}) == 4
    with pytest.raises(FrozenInstanceError):
        HASWELL.threads = 4


def test_a_machine_is_taken_as_it_is():
    assert Machine.of(HASWELL) is HASWELL
    assert Machine.of(HASWELL, 3) == Machine.of("haswell", 3)


@pytest.mark.parametrize("threads", [0, -1, 1025])
@pytest.mark.parametrize("target", ["haswell", HASWELL])
def test_threads_have_a_range(target, threads):
    with pytest.raises(TargetError, match=rf"threads = {threads}; expected 1 to 1024"):
        Machine.of(target, threads)


def test_the_default_is_a_thread_for_each_core_of_this_machine(monkeypatch):
    monkeypatch.setattr(tvmquant.machine, "physical_cores", lambda: 3)
    assert Machine.of().threads == Machine.of("haswell").threads == 3


def test_it_says_what_code_may_use():
    assert HASWELL.triple.startswith("x86_64")
    assert "avx2" in HASWELL.required_features
    assert set(HASWELL.required_features) < HASWELL.features


def test_another_process_gets_the_same_without_tvm():
    code = (
        "import pickle, sys; machine = pickle.load(sys.stdin.buffer); "
        "print('tvm' in sys.modules, machine.threads, 'avx2' in machine.features, "
        "machine.target.attrs['mcpu'])"
    )
    assert HASWELL.target.attrs["mcpu"] == "haswell"
    found = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(HASWELL), capture_output=True, check=True
    )
    assert found.stdout.decode().split() == ["False", "2", "True", "haswell"]


def test_caches_decide_how_work_is_cut():
    workload = conv(channels=256)
    small = replace(HASWELL, caches=Caches(second_level=1 << 14))
    default, cut = (next(iter(workload.tilings(m).values())) for m in (HASWELL, small))
    assert cut.row_block < default.row_block
