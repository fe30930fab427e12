"""Compilation targets: parsing, validation, and the processor features an artefact needs.

Nothing here asks what machine this is, except for the target ``native``.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tvmquant.devices.host import CPUINFO_NAMES, host_features
from tvmquant.errors import TargetError
from tvmquant.target_presets import PRESETS

if TYPE_CHECKING:
    import tvm

# Architectures whose triples LLVM parses; an unknown one would end the process inside LLVM.
ARCHITECTURES = ("x86_64", "aarch64", "arm64", "armv7a", "armv7l", "riscv64")

# What a triple says of the operating system -> its name in Python.
SYSTEMS = {
    "android": "android", "linux": "linux", "darwin": "darwin", "macos": "darwin", "ios": "ios",
    "windows": "windows", "mingw": "windows", "freebsd": "freebsd",
}  # fmt: skip

# Threads of a library, at most: far beyond the machines that TVM's thread pool serves.
MAX_THREADS = 1024

# Options of TVM's LLVM target that are numbers.
INTEGER_OPTIONS = ("num-cores", "opt-level", "vector-width")


def parse_target(spec: str | dict[str, Any] | tvm.target.Target) -> tvm.target.Target:
    """Return a TVM target, validated.

    Parameters
    ----------
    spec : str, dict or Target
        ``"native"`` (this machine), a name of `tvmquant.target_presets`, a processor name known to
        LLVM (``"haswell"``), options in TVM's style (``"llvm -mcpu=znver4"``,
        ``"-mtriple=aarch64-linux-gnu -mattr=+dotprod"``), a JSON object, or a TVM target.

    Raises
    ------
    TargetError
        If the kind, triple, processor or a feature is not known to LLVM.

    Examples
    --------
    >>> parse_target("llvm -mcpu=haswell").attrs["mcpu"]
    'haswell'
    """
    import tvm

    if isinstance(spec, tvm.target.Target):
        spec = {"kind": spec.kind.name, **{str(k): v for k, v in spec.attrs.items()}}
    if not isinstance(spec, (str, dict)):
        raise TargetError(f"target {spec!r} is not a string, a dict or a TVM target")
    config = _config(spec)
    kind = config["kind"]
    if kind != "llvm":
        raise TargetError(f"target kind {kind!r} is not supported; expected 'llvm' (a CPU)")
    _validate(config)
    try:
        target = tvm.target.Target(config)
        tvm.target.codegen.llvm_get_cpu_features(target)  # LLVM reads the options only now
        return target
    except Exception as error:  # TVM raises several unrelated types for a bad option
        reason = str(error).strip().splitlines()[-1]
        raise TargetError(f"target {spec!r} is not valid: {reason}") from None


def _config(spec: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(spec, dict):
        return {"kind": "llvm", **spec}
    text = spec.strip()
    if not text:
        raise TargetError("the target is empty; expected native, a processor or options")
    if text == "native":
        return _native()
    if text in PRESETS:
        return {"kind": "llvm", **PRESETS[text]}
    if re.fullmatch(r"(android-|linux-|macos-)?arm64(-v[0-9.]+)?", text):  # no triple
        raise TargetError(f"no target is called {text!r}; expected one of {', '.join(PRESETS)}")
    if text.startswith("{"):
        try:
            return {"kind": "llvm", **json.loads(text)}
        except json.JSONDecodeError as error:
            raise TargetError(f"target {spec!r} is not valid JSON: {error}") from None
    config: dict[str, Any] = {"kind": "llvm"}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise TargetError(f"target {spec!r} cannot be split into options: {error}") from None
    for word in words:
        option = re.fullmatch(r"--?([a-z][a-z0-9_-]*)=(.*)", word)
        if option:
            key, value = option.groups()
            numeric = key in INTEGER_OPTIONS and value.isdecimal()
            config[key] = value.split(",") if key == "mattr" else int(value) if numeric else value
        elif word.startswith("-"):
            raise TargetError(f"target option {word!r} is not of the form -name=value")
        elif word in ("llvm", "cuda", "c", "metal", "vulkan", "opencl", "rocm"):
            config["kind"] = word
        elif word.startswith(tuple(f"{name}-" for name in ARCHITECTURES)):
            config["mtriple"] = word
        else:
            config["mcpu"] = word
    return config


def _native() -> dict[str, Any]:
    """Describe this machine: its processor, less the features the kernel does not report."""
    import tvm

    codegen = tvm.target.codegen
    config: dict[str, Any] = {"kind": "llvm", "mcpu": str(codegen.llvm_get_system_cpu())}
    present = host_features()
    implied = {str(f) for f in codegen.llvm_get_cpu_features(tvm.target.Target(config))}
    missing = sorted(f for f in implied & CPUINFO_NAMES.keys() if CPUINFO_NAMES[f] not in present)
    if present and missing:
        config["mattr"] = [f"-{name}" for name in missing]
    return config


def _validate(config: dict[str, Any]) -> None:
    import tvm

    codegen = tvm.target.codegen
    triple = triple_of(config)
    architecture = triple.split("-")[0]
    if architecture not in ARCHITECTURES:
        raise TargetError(
            f"target triple {triple!r}: architecture {architecture!r} is not supported; "
            f"expected one of {', '.join(ARCHITECTURES)}"
        )
    base = {"kind": "llvm", "mtriple": triple}
    cpu = config.get("mcpu")
    if cpu is not None:
        known = {str(c) for c in codegen.llvm_get_cpu_archlist(tvm.target.Target(base))}
        if str(cpu) not in known:
            close = [c for c in sorted(known) if c.startswith(str(cpu)[:4])]
            raise TargetError(
                f"LLVM knows no processor {cpu!r} for {architecture}; "
                f"{'did you mean ' + ', '.join(close[:6]) if close else 'for example'} "
                f"{'?' if close else ', '.join(sorted(known)[:6])}"
            )
    features = config.get("mattr", [])
    if isinstance(features, str) or not isinstance(features, Sequence):
        raise TargetError(f"target features {features!r} must be a list such as ['+avx2']")
    for feature in features:
        if not re.fullmatch(r"[+-][a-z0-9.-]+", str(feature)):
            raise TargetError(f"target feature {str(feature)!r} must look like +avx2 or -avx512f")
        name = str(feature)[1:]
        with_feature = tvm.target.Target({**base, "mattr": [f"+{name}"]})
        if name not in {str(f) for f in codegen.llvm_get_cpu_features(with_feature)}:
            raise TargetError(f"LLVM knows no feature {name!r} for {architecture}")
    if config.get("mfloat-abi", "hard") not in ("soft", "hard"):
        raise TargetError(f"mfloat-abi = {config['mfloat-abi']!r}; expected 'soft' or 'hard'")


def triple_of(target: Mapping[str, Any]) -> str:
    """Return the triple of a target's options: this machine's where none is given."""
    import tvm

    return str(target.get("mtriple", tvm.target.codegen.llvm_get_system_triple()))


def architecture_of(triple: str) -> str:
    """Return the architecture of a triple, or of what `platform.machine` says, by one name."""
    name = triple.split("-")[0]
    return {"arm64": "aarch64", "armv7a": "arm", "armv7l": "arm"}.get(name, name)


def system_of(triple: str) -> str:
    """Return the operating system of a triple as `platform.system` names it, or "" if it has none.

    Examples
    --------
    >>> system_of("x86_64-pc-linux-gnu"), system_of("arm64-apple-macosx14"), system_of("riscv64")
    ('linux', 'darwin', '')
    """
    for name, system in SYSTEMS.items():
        if name in triple:
            return system
    return ""


def is_elf(triple: str) -> bool:
    """Whether libraries for a triple are ELF files, as on Linux, Android and FreeBSD.

    Examples
    --------
    >>> is_elf("aarch64-linux-gnu"), is_elf("arm64-apple-macosx14")
    (True, False)
    """
    return (system_of(triple) or platform.system().lower()) in ("linux", "android", "freebsd")


def target_options(target: tvm.target.Target) -> dict[str, Any]:
    """Return the options of a target as JSON values."""

    def plain(value: Any) -> Any:
        if isinstance(value, (str, int, float, bool)):
            return value
        return [str(item) for item in value]

    return {
        "kind": target.kind.name,
        **{str(name): plain(value) for name, value in sorted(target.attrs.items())},
    }


def supported_features(target: tvm.target.Target) -> frozenset[str]:
    """Return the features of the processor that ``target`` describes, as LLVM names them."""
    import tvm

    return frozenset(str(f) for f in tvm.target.codegen.llvm_get_cpu_features(target))
