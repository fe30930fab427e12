"""What this machine is: its processor, that processor's features, and its cores."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

# Features that decide whether compiled code runs, as LLVM names them -> as Linux does.
CPUINFO_NAMES = {
    "sse3": "pni", "ssse3": "ssse3", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "popcnt": "popcnt",
    "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi": "bmi1", "bmi2": "bmi2",
    "lzcnt": "abm", "movbe": "movbe", "sse4a": "sse4a", "xop": "xop",
    "fma4": "fma4", "adx": "adx", "gfni": "gfni",
    "vaes": "vaes", "vpclmulqdq": "vpclmulqdq", "avxvnni": "avx_vnni", "avx512f": "avx512f",
    "avx512bw": "avx512bw", "avx512vl": "avx512vl", "avx512dq": "avx512dq",
    "avx512cd": "avx512cd", "avx512vnni": "avx512_vnni", "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2", "avx512ifma": "avx512ifma", "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq", "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16", "avx512vp2intersect": "avx512_vp2intersect",
    "amx-int8": "amx_int8", "amx-tile": "amx_tile", "amx-bf16": "amx_bf16",
    "neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm", "sve": "sve", "sve2": "sve2",
    "fullfp16": "asimdhp", "lse": "atomics", "crc": "crc32",
}  # fmt: skip


def host_features() -> frozenset[str]:
    """Return the features of this machine's processor as Linux names them; empty elsewhere."""
    return features_in(_cpuinfo())


def processor_name() -> str:
    """Return the name of this machine's processor."""
    return name_in(_cpuinfo()) or platform.processor() or platform.machine()


def features_in(cpuinfo: str) -> frozenset[str]:
    """Return the features that Linux's description of a processor lists.

    Examples
    --------
    >>> sorted(features_in("flags : fpu avx2"))
    ['avx2', 'fpu']
    """
    match = re.search(r"^(?:flags|Features)[ \t]*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def name_in(cpuinfo: str) -> str:
    """Return the name in Linux's description of a processor; empty where it has none."""
    match = re.search(r"^model name[ \t]*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)
    return match.group(1).strip() if match else ""


def physical_cores() -> int:
    """Return the number of physical cores this process may use (at least 1).

    Where psutil is not installed, as where a library is only deployed: of processors.
    """
    processors = usable_processors() or os.cpu_count() or 1
    try:
        import psutil
    except ImportError:
        return processors
    return min(psutil.cpu_count(logical=False) or processors, processors)


def usable_processors() -> int | None:
    """Return the number of processors this process may use; None where the system keeps no such."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else None


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return ""
