"""Devices of TVM's RPC for tests: processes of this machine, with nothing but TVM's runtime.

Their environment is a folder of links to TVM, numpy and what these import; tvmquant and the
compiler are not there.
"""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tvmquant.devices.tracker import Tracker
from tvmquant.errors import DeviceError

LOOPBACK = "127.0.0.1"
START_SECONDS = 60
PACKAGES = ("tvm", "tvm_ffi", "numpy", "ml_dtypes", "typing_extensions", "cloudpickle")
# Outside of any virtual environment: its own packages are the standard library.
PYTHON = os.path.realpath(sys.executable)


@contextlib.contextmanager
def bare_environment(*more: str) -> Iterator[dict[str, str]]:
    """Make an environment for `PYTHON` that has TVM's runtime, numpy and ``more`` alone."""
    with tempfile.TemporaryDirectory(prefix="tvmquant-device.") as folder:
        for name in (*PACKAGES, *more):
            found = importlib.util.find_spec(name)
            assert found is not None, name
            assert found.origin is not None, name
            source = Path(found.origin)
            source = source.parent if source.name == "__init__.py" else source
            for path in (source, source.with_name(f"{name}.libs")):
                if path.exists():
                    Path(folder, path.name).symlink_to(path)
        yield {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": folder,
            "PYTHONNOUSERSITE": "1",
            "TVM_NUM_THREADS": "1",
            "TVM_USE_RUNTIME_LIB": "1",
        }


@contextlib.contextmanager
def running_tracker() -> Iterator[int]:
    """Start a tracker and return its port."""
    port = free_port()
    arguments = ["--port", str(port), "--port-end", str(port + 1)]
    with (
        bare_environment("tornado") as environment,
        process(PYTHON, "tvm.exec.rpc_tracker", *arguments, environment=environment),
    ):
        wait_for(lambda: socket.create_connection((LOOPBACK, port), 1).close())
        yield port


@contextlib.contextmanager
def running_devices(port: int, key: str, number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start devices and wait until the tracker at a port holds them all."""
    tracker = Tracker(LOOPBACK, port, key)
    with contextlib.ExitStack() as stack:
        environment = stack.enter_context(bare_environment())
        servers = []
        for own in (free_port() for _ in range(number)):
            arguments = [
                "--port", str(own), "--port-end", str(own + 1), "--key", key,
                "--tracker", tracker.address,
            ]  # fmt: skip
            server = process(PYTHON, "tvm.exec.rpc_server", *arguments, environment=environment)
            servers.append(stack.enter_context(server))

        def all_there() -> None:
            assert tracker.devices() == number

        wait_for(all_there)
        yield servers


@contextlib.contextmanager
def process(
    python: str, module: str, *arguments: str, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module on the loopback interface, in a process group of its own."""
    started = subprocess.Popen(
        [python, "-m", module, "--host", LOOPBACK, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield started
    finally:
        kill(started)


def kill(started: subprocess.Popen[bytes]) -> None:
    """Kill a process and those that it started, as when a board loses power."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, 9)
    started.wait()


def free_port() -> int:
    """Return a port of the loopback interface that nothing uses."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(attempt: Callable[[], object]) -> object:
    """Attempt until it succeeds; raise the last failure after a minute."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return attempt()
        except (OSError, DeviceError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
