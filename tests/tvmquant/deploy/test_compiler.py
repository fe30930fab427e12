import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import tvm
from tvm import relax

from tvmquant.deploy.compiler import compile_in_worker, find_linker
from tvmquant.errors import TargetError
from tvmquant.machine import Machine
from tvmquant.passes import pipeline
from tvmquant.target import parse_target


@pytest.fixture(scope="module")
def lowered(quantized):
    """Return a function that lowers the small network for a processor."""
    return lambda cpu: pipeline.expose_integers(
        pipeline.lower(quantized.module, Machine.of(cpu, 1), batch=1)
    )


@pytest.fixture(scope="module")
def module(lowered):
    return lowered("haswell")


@pytest.fixture
def no_child_stays():
    yield
    assert multiprocessing.active_children() == []


pytestmark = pytest.mark.usefixtures("no_child_stays")


def test_the_library_holds_the_functions(module, tmp_path):
    compile_in_worker(module, parse_target("haswell"), tmp_path / "model.so")
    library = tvm.runtime.load_module(str(tmp_path / "model.so"))
    assert library["vm_load_executable"] is not None
    assert os.listdir(tmp_path) == ["model.so"]


def test_an_instruction_that_the_processor_lacks(lowered, tmp_path, monkeypatch):
    """LLVM ends its process where it cannot select an instruction."""
    build = relax.build

    def without_a_stack(*arguments, **options):
        faulthandler.disable()  # pytest's, which would print the stack of the test
        return build(*arguments, **options)

    monkeypatch.setattr(relax, "build", without_a_stack)
    for _ in range(2):  # this process is still alive
        with pytest.raises(TargetError, match=r"died: .*lacks an instruction.* --target haswell"):
            compile_in_worker(lowered("cascadelake"), parse_target("haswell"), tmp_path / "m.so")


def abort(*_args, **_options):
    faulthandler.disable()
    os.abort()


def kill(*_args, **_options):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(*_args, **_options):
    os._exit(3)


def raise_nothing_said(*_args, **_options):
    raise ValueError


def raise_a_lot(*_args, **_options):
    raise ValueError("noise " * 1000 + "the reason")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (abort, r"died: SIGABRT, as when the target lacks"),
        (kill, r"died: SIGKILL, as when memory runs out"),
        (leave, r"died: exit code 3"),
        (raise_nothing_said, r"failed: ValueError: no reason given"),
        (raise_a_lot, r"failed: ValueError: [^:]{1000,1500}the reason$"),
    ],
)
def test_ends_of_the_worker(module, tmp_path, monkeypatch, ending, message):
    monkeypatch.setattr(relax, "build", ending)
    with pytest.raises(TargetError, match=message) as error:
        compile_in_worker(module, parse_target("haswell"), tmp_path / "model.so")
    assert "haswell" in str(error.value)


INTERRUPTED = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
import tvm
from tvm import relax
from tvmquant.deploy.compiler import compile_in_worker
from tvmquant.target import parse_target

def interrupt(*_args, **_options):
    time.sleep(0.3)  # Python drops an exception that strikes while it forks
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)

# a process that was started in the background ignores the signal
signal.signal(signal.SIGINT, signal.default_int_handler)
relax.build = interrupt
try:
    compile_in_worker(tvm.IRModule(), parse_target("haswell"), Path(sys.argv[1], "model.so"))
except KeyboardInterrupt:
    print("interrupted, children:", multiprocessing.active_children(), os.listdir(sys.argv[1]))
"""


def test_an_interrupt_ends_the_worker(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, tmp_path],
        capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("interrupted, children: [] []\n", "")


def test_this_machine_needs_no_cross_compiler():
    assert find_linker(parse_target("native")) is None


def test_without_any_compiler(monkeypatch, tmp_path):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"install g\+\+ or set CXX"):
        find_linker(parse_target("haswell"))


def test_cross_compilers(monkeypatch, tmp_path):
    target = parse_target("-mtriple=riscv64-linux-gnu")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"riscv64-linux-gnu-g\+\+, .*apt install g\+\+-riscv64-"):
        find_linker(target)
    for name in ("riscv64-linux-gnu-clang", "riscv64-linux-gnu-gcc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        assert find_linker(target) == name
