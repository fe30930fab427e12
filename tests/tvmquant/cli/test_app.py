import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest

from tvmquant.errors import DataError


def test_version(tvmquant):
    assert tvmquant("--version").stdout == f"tvmquant {version('tvmquant')}\n"


def test_help_names_every_command(tvmquant):
    text = tvmquant("--help").stdout
    assert all(name in text for name in ("compile", "eval", "bench", "inspect", "run", "demo"))


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["compile"], ["bench", "x", "--repeats", "0"], ["--nonsense"]]
)
def test_wrong_usage_ends_with_code_2(tvmquant, arguments):
    assert tvmquant(*arguments, code=2).stdout == ""


def test_an_error_is_one_message_without_a_traceback(tvmquant):
    outcome = tvmquant("inspect", "no [bold]such[/bold] file", code=2)
    assert outcome.stderr.startswith("error: 'no [bold]such[/bold] file' does not exist; expected")
    assert "Traceback" not in outcome.stderr


def test_debug_raises(tvmquant):
    outcome = tvmquant("--debug", "inspect", "nothing", code=1)
    assert isinstance(outcome.exception, DataError)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device"),
    ],
)
def test_exit_codes(tvmquant, monkeypatch, error, code, message):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("tvmquant.compilation.compile_onnx", fail)
    assert tvmquant("compile", "x.onnx", "--data", "x.npy", code=code).stderr == message


def test_a_defect_is_not_hidden(tvmquant, monkeypatch):
    monkeypatch.setattr("tvmquant.compilation.compile_onnx", None)
    outcome = tvmquant("compile", "x.onnx", "--data", "x.npy", code=1)
    assert isinstance(outcome.exception, TypeError)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupted_process_ends_with_130():
    code = """
import signal, sys
import tvmquant.compilation
# a shell ignores it for what it starts in the background, and so do the processes of those
signal.signal(signal.SIGINT, signal.default_int_handler)
tvmquant.compilation.compile_onnx = lambda *a, **k: signal.raise_signal(signal.SIGINT)
sys.argv = ["tvmquant", "compile", "x.onnx", "--data", "x.npy"]
from tvmquant.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
    assert done.returncode == 128 + signal.SIGINT
