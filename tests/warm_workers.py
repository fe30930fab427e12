"""Worker processes of TVM that start in a moment.

`tvm.support.popen_pool` starts an interpreter for each, which imports TVM, PyTorch and tvmquant
anew: seconds of computing, for kernels that take milliseconds. Here one process imports them and
forks all workers, which then execute TVM's own loop, with the environment, working directory and
output of whoever starts them.
"""

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # imported with TVM, and not needed

import pytest
from tvm.support.popen_pool import PopenWorker

from tests.trusting_kernels import trusting_kernels

ROOT = Path(__file__).resolve().parents[1]


# What tests put back that are about processes which start by themselves.
COLD_START = PopenWorker._start


class _Forker:
    """The process that forks, started with the first worker."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tvmquant-workers.")
        self._address = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def connect(self) -> socket.socket:
        """Return a connection to a new worker."""
        with self._lock:  # pools start their workers in threads
            if self._process is None:
                self._process = self._start()
        link = socket.socket(socket.AF_UNIX)
        link.connect(self._address)
        return link

    def _start(self) -> subprocess.Popen[bytes]:
        with socket.socket(socket.AF_UNIX) as listener:
            # a test's own process may have been the first to start one
            self._address = str(Path(self._folder.name, str(os.getpid())))
            listener.bind(self._address)
            listener.listen()
            # it ends with its standard input, and that with this process
            return subprocess.Popen(
                [sys.executable, "-m", "tests.warm_workers", str(listener.fileno())],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                cwd=ROOT,
            )

    def close(self) -> None:
        """End the process; workers live on until they are closed or killed."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()


class _Worker:
    """What TVM uses of `subprocess.Popen`; the connection closes when the process ends."""

    def __init__(self, link: socket.socket, ends: list[int], outputs: list[Any]) -> None:
        self._link = link
        with open(os.devnull, "wb") as nothing, link.makefile("wb") as stream:
            given = {None: -1, subprocess.DEVNULL: nothing.fileno()}
            sinks = [given.get(sink, sink) for sink in outputs]
            sinks = [own if sink == -1 else sink for own, sink in zip((1, 2), sinks, strict=True)]
            socket.send_fds(link, [b"."], [*ends, *sinks])
            pickle.dump((os.getcwd(), dict(os.environ)), stream)
        (self.pid,) = struct.unpack("<i", link.recv(4, socket.MSG_WAITALL))

    def __del__(self) -> None:
        self._link.close()

    def poll(self) -> int | None:
        """Return 0 where it has ended, however it did."""
        return 0 if self._ended(0.0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return 0

    def kill(self) -> None:
        if not self._ended(0.0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _ended(self, timeout: float | None) -> bool:
        if self._link.fileno() < 0:  # forgotten together with what would kill it
            return True
        return bool(select.select([self._link], [], [], timeout)[0])


@contextlib.contextmanager
def warm_workers() -> Iterator[None]:
    """Let TVM's worker processes be forked."""
    forker = _Forker()

    def start(worker: Any) -> None:
        if worker._proc is not None:
            return
        main_read, worker_write = os.pipe()
        worker_read, main_write = os.pipe()
        try:
            outputs = [worker._stdout, worker._stderr]
            worker._proc = _Worker(forker.connect(), [worker_read, worker_write], outputs)
        finally:
            os.close(worker_read)
            os.close(worker_write)
        worker._reader, worker._writer = os.fdopen(main_read, "rb"), os.fdopen(main_write, "wb")

    with contextlib.closing(forker), pytest.MonkeyPatch.context() as patch:
        patch.setattr(PopenWorker, "_start", start)
        yield


def _serve(listener: socket.socket) -> socket.socket:
    """Fork workers until standard input ends; return in each of them, with its connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if listener not in ready:
            sys.exit()
        link, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return link
        link.close()


def _work(link: socket.socket) -> None:
    """Execute TVM's loop as the process that is connected would have it."""
    from tvm.exec import popen_worker

    _, ends, _, _ = socket.recv_fds(link, 1, 4)
    with link.makefile("rb") as stream:
        folder, environment = pickle.load(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    reader, writer, *sinks = ends
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, sink in enumerate(sinks, 1):
        os.dup2(sink, number)
        os.close(sink)
    link.sendall(struct.pack("<i", os.getpid()))
    sys.argv = ["popen_worker", str(reader), str(writer)]
    with trusting_kernels():
        popen_worker.main()


if __name__ == "__main__":
    import tvmquant.devices.rpc_worker
    import tvmquant.schedules.families
    import tvmquant.tuning.worker  # noqa: F401

    _work(_serve(socket.socket(fileno=int(sys.argv[1]))))
