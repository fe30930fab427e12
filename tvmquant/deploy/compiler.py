"""Compile lowered modules to machine code in a process of their own, and link them."""

from __future__ import annotations

import multiprocessing
import platform
import shutil
import signal
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmquant.errors import TargetError
from tvmquant.target import architecture_of, system_of, triple_of

if TYPE_CHECKING:
    import tvm

# The first of these that is installed links code for another machine; {} is the target's triple.
CROSS_COMPILERS = ("{}-g++", "{}-gcc", "{}-clang++", "{}-clang")

# How long an interrupt may go unnoticed.
POLL_SECONDS = 0.2

# Of a failure's message: compilers put the decisive lines last.
MESSAGE_CHARACTERS = 1500


def compile_in_worker(module: tvm.IRModule, target: tvm.target.Target, library: Path) -> None:
    """Compile a module of kernels and virtual machine code into a shared library.

    Works in a forked process, because where LLVM cannot select an instruction it ends its process.

    Parameters
    ----------
    module : IRModule
        Level L3.
    target : Target
    library : path
        File to write.

    Raises
    ------
    TargetError
        If no linker for the target is installed, or the compilation fails or dies.
    """
    linker = find_linker(target)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(
        target=_compile, args=(module, target, library, linker, send), daemon=True
    )
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads; the pools that idle here hold no locks
            warnings.simplefilter("ignore", DeprecationWarning)
            worker.start()
        send.close()
        while not receive.poll(POLL_SECONDS):
            pass  # Python raises KeyboardInterrupt here where another thread took the signal
        problem = receive.recv()
    except EOFError:
        problem = None
    except BaseException:
        if worker.pid is not None:
            worker.kill()
        raise
    finally:
        receive.close()
        if worker.pid is not None:
            worker.join()
    if problem:
        raise TargetError(f"compilation for {target} failed: {problem}")
    if worker.exitcode != 0 or not library.is_file():
        raise TargetError(f"compilation for {target} died: {_cause(worker.exitcode)}")


def find_linker(target: tvm.target.Target) -> str | None:
    """Return the cross compiler that links for the target; None for this machine's own.

    Raises
    ------
    TargetError
        If no compiler is on the path; for another architecture, no cross compiler for it.
    """
    from tvm.support import cc

    triple = triple_of(target.attrs)
    machine = platform.machine()
    here = platform.system().lower()
    if architecture_of(triple) == architecture_of(machine) and system_of(triple) in ("", here):
        if cc.get_cc() is None:
            raise TargetError("linking needs a C or C++ compiler; install g++ or set CXX to yours")
        return None
    candidates = [name.format(triple) for name in CROSS_COMPILERS]
    for name in candidates:
        if shutil.which(name):
            return name
    hint = f" (on Debian: apt install g++-{triple})" if system_of(triple) == "linux" else ""
    raise TargetError(
        f"linking for {triple} on {machine} {here} needs a cross compiler; expected one of "
        f"{', '.join(candidates)} on the path{hint}"
    )


def _cause(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "SIGKILL, as when memory runs out; free some, or compile for a smaller batch"
    ending = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return (
        f"{ending}, as when the target lacks an instruction that a kernel needs; name another "
        "processor, for example with --target haswell"
    )


def _compile(
    module: tvm.IRModule, target: tvm.target.Target, library: Path, linker: str | None, send: Any
) -> None:
    """Compile, link and send what went wrong, or None."""
    import tvm_ffi
    from tvm import relax
    from tvm.support import cc

    from tvmquant.deploy.stored_weights import StoredWeight, write_source
    from tvmquant.passes.pipeline import virtual_machine_pipeline
    from tvmquant.passes.store_weights import CHANNELS, FORMATS, FUNCTION, LAYOUTS, WEIGHTS

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this one
    link: dict[str, Any] = {"fcompile": cc.cross_compiler(linker)} if linker else {}
    options = []
    if system_of(triple_of(target.attrs)) == "linux":
        options.append("-Wl,--strip-debug")  # of the kernels' TensorIR: 2 % of ResNet-50
    try:
        with target, tempfile.TemporaryDirectory(prefix="tvmquant.") as scratch:
            weights = [StoredWeight.of(found) for found in (module.attrs or {}).get(WEIGHTS, [])]
            for noted in (WEIGHTS, FORMATS, LAYOUTS, CHANNELS):
                module = module.without_attr(noted)
            executable = relax.build(module, target, relax_pipeline=virtual_machine_pipeline())
            if weights:
                link["addons"] = [str(write_source(weights, FUNCTION, Path(scratch)))]
                options += ["-O2", *(f"-I{path}" for path in tvm_ffi.libinfo.include_paths())]
            executable.export_library(str(library), options=options, **link)
        send.send(None)
    except Exception as error:  # whatever it is, the parent reports it as one message
        reason = str(error).strip()[-MESSAGE_CHARACTERS:]
        send.send(f"{type(error).__name__}: {reason or 'no reason given'}")
