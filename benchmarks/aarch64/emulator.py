"""Processors of AArch64 that qemu emulates, which run kernels and networks, and count.

They need ``qemu-aarch64``, a cross compiler, and TVM's runtime for AArch64 (two libraries of its
wheels): ``python -m benchmarks.aarch64.emulator`` fetches the latter into ``build/aarch64`` and
compiles two programs, this folder's and the tutorial's, and qemu's plugin that counts.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.support import cc

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "aarch64"
EMULATOR = "qemu-aarch64"
COMPILER = "aarch64-linux-gnu-g++"
TRIPLE = "aarch64-linux-gnu"
SYSROOT = "/usr/aarch64-linux-gnu"
# Wheels, and the library of each that programs link.
PACKAGES = {
    "apache-tvm": "tvm/lib/libtvm_runtime.so",
    "apache-tvm-ffi": "tvm_ffi/lib/libtvm_ffi.so",
}
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux2014")
PROGRAMS = {
    "kernels": Path(__file__).with_name("kernels.cc"),
    "run": ROOT / "tutorials" / "cpp" / "run.cc",
}
PLUGIN = FOLDER / "counts.so"
INSTALL = "apt install qemu-user g++-aarch64-linux-gnu, then make emulation"


@dataclass(frozen=True)
class Processor:
    """A processor as qemu and LLVM call it.

    Parameters
    ----------
    name : str
        Of ``qemu-aarch64 -cpu``.
    target : str
        As of `tvmquant.build`.
    """

    name: str
    target: str

    def run(
        self, program: Path, *arguments: object, root: Path | str = SYSROOT, **environment: str
    ) -> list[int]:
        """Run a program with one thread, and return how many instructions it executed.

        First up to each time that it asked for its parent's number (``getppid``), then in all.

        Parameters
        ----------
        program : Path
        *arguments : object
        root : path
            Of the libraries that it is linked with.
        **environment : str

        Raises
        ------
        RuntimeError
            When it fails.
        """
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as counted:
            variables = {"TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **environment}
            fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # the same addresses again
            command = [
                *fixed,
                EMULATOR, "-cpu", self.name, "-plugin", PLUGIN, "-L", root,
                *(part for name, value in variables.items() for part in ("-E", f"{name}={value}")),
                program, *arguments,
            ]  # fmt: skip
            done = subprocess.run(
                [*map(str, command)], capture_output=True, text=True, check=False,
                env={**os.environ, "INSTRUCTIONS": counted.name},
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(
                    f"{program} on {self.name}: {done.returncode}, {done.stderr[-1000:]}"
                )
            return [int(line) for line in counted]

    def instructions(self, function: tirx.PrimFunc, inputs: Sequence[Any]) -> float:
        """Return how many instructions a call of a kernel executes."""
        _, (least, most) = self._call({"kernel": (function, inputs)}, (1, 3))
        return (most - least) / 2.0

    def run_kernels(
        self, calls: Mapping[str, tuple[tirx.PrimFunc, Sequence[Any]]]
    ) -> dict[str, Any]:
        """Compile kernels together, call each once, and return their outputs.

        Parameters
        ----------
        calls : mapping of str to (PrimFunc, sequence of array)
            By the name of the call, a scheduled kernel and its inputs.
        """
        return self._call(calls, (1,))[0]

    def _call(
        self, calls: Mapping[str, tuple[tirx.PrimFunc, Sequence[Any]]], repeats: Sequence[int]
    ) -> tuple[dict[str, Any], list[int]]:
        """Return outputs, and what was executed with each number of calls."""
        from tvmquant.target import parse_target

        functions = {f"kernel{i}": function for i, (function, _) in enumerate(calls.values())}
        module = tvm.IRModule(
            {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
        )
        with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
            library = Path(scratch, "kernels.so")
            compiled = tvm.compile(module, target=parse_target(self.target))
            compiled.export_library(str(library), fcompile=cc.cross_compiler(COMPILER))
            lines, outputs = [], {}
            for (name, function), (call, (_, inputs)) in zip(
                functions.items(), calls.items(), strict=True
            ):
                lines.append(f"call {name}")
                *_, last = function.params
                output = np.zeros([int(n) for n in last.ty.shape], str(last.ty.dtype))
                for i, array in enumerate((*inputs, output)):
                    path = Path(scratch, f"{name}.{i}")
                    np.ascontiguousarray(array).tofile(path)
                    code = "iuf".index(array.dtype.kind)
                    extents = " ".join(map(str, array.shape))
                    lines.append(f"{code} {8 * array.dtype.itemsize} {path} {extents}")
                outputs[call] = (path, output)
            listed = Path(scratch, "calls")
            listed.write_text("\n".join(lines) + "\n", encoding="utf-8")
            program = FOLDER / "kernels"
            executed = [self.run(program, library, listed, times)[-1] for times in repeats]
            found = {
                call: np.fromfile(path, like.dtype).reshape(like.shape)
                for call, (path, like) in outputs.items()
            }
            return found, executed

    def run_network(self, library: Path, inputs: Any) -> Any:
        """Return the output of a network that `tvmquant.build` built."""
        with tempfile.TemporaryDirectory(prefix="tvmquant-") as scratch:
            given, taken = Path(scratch, "x.npy"), Path(scratch, "y.npy")
            np.save(given, np.ascontiguousarray(inputs))
            self.run(FOLDER / "run", library, 1, given, taken)
            return np.load(taken)


# Of each level of instructions one: none, dot products, and matrix products.
PROCESSORS = (
    Processor("cortex-a53", f"-mtriple={TRIPLE} -mcpu=cortex-a53"),
    Processor("cortex-a76", f"-mtriple={TRIPLE} -mcpu=cortex-a76"),
    Processor("max,sve=off", f"-mtriple={TRIPLE} -mcpu=neoverse-n1 -mattr=+i8mm"),
)


def missing() -> str:
    """Return what is missing, and how to install it; empty where nothing is."""
    tools = [tool for tool in (EMULATOR, COMPILER) if shutil.which(tool) is None]
    absent = tools or [str(path) for path in _made() if not path.exists()]
    return f"no {' and no '.join(absent)}: {INSTALL}" if absent else ""


def _made() -> list[Path]:
    return [PLUGIN, *(FOLDER / name for name in PROGRAMS)]


def prepare() -> None:
    """Fetch TVM's runtime for AArch64, and compile the programs, where that is not done."""
    if all(path.exists() for path in _made()):
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        wanted = [f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES]
        platforms = [part for name in PLATFORMS for part in ("--platform", f"{name}_aarch64")]
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
                "--no-deps", "--only-binary=:all:", "--python-version", version, *platforms,
                "--dest", scratch, *wanted,
            ],
            check=True,
        )  # fmt: skip
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                names = [n for n in archive.namelist() if n in PACKAGES.values()]
                headers = [n for n in archive.namelist() if n.startswith("tvm_ffi/include/")]
                archive.extractall(FOLDER, [*names, *headers])
    libraries = [FOLDER / path for path in PACKAGES.values()]
    include = FOLDER / "tvm_ffi" / "include"
    for name, source in PROGRAMS.items():
        made = FOLDER / f"{name}.{os.getpid()}"
        subprocess.run(
            [
                COMPILER, "-std=c++17", "-O1", f"-I{include}", f"-I{include / 'dlpack'}",
                f"-I{PROGRAMS['run'].parent}", str(source), "-o", str(made), "-Wl,--no-as-needed",
                *map(str, libraries), *(f"-Wl,-rpath,{path.parent}" for path in libraries),
            ],
            check=True,
        )  # fmt: skip
        made.rename(FOLDER / name)
    source = Path(__file__).with_name("counts.c")
    made = FOLDER / f"counts.{os.getpid()}"
    flags = ["-x", "c", "-O2", "-shared", "-fPIC"]
    subprocess.run([cc.get_cc(), *flags, str(source), "-o", str(made)], check=True)
    made.rename(PLUGIN)


if __name__ == "__main__":
    if shutil.which(EMULATOR) and shutil.which(COMPILER):
        prepare()
    print(missing() or f"AArch64 is emulated with {FOLDER}")
