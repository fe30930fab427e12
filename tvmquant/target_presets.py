"""Targets by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

# Options as of `tvmquant.target.parse_target`, and whose processors they are. SVE is left out: the
# kernels have no use for it, and boards with i8mm alone run them.
_ARM: Final[Mapping[str, Mapping[str, Any]]] = {
    "v8.0": {"mcpu": "cortex-a72"},
    "v8.2": {"mcpu": "cortex-a76"},
    "v8.6": {"mcpu": "neoverse-n1", "mattr": ["+i8mm"]},
}
_LINUX: Final = {f"arm64-{v}": {"mtriple": "aarch64-linux-gnu", **o} for v, o in _ARM.items()}
_ANDROID: Final = {
    f"android-arm64-{v}": {"mtriple": "aarch64-linux-android30", **o} for v, o in _ARM.items()
}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "x86-64-v3": {"mtriple": "x86_64-linux-gnu", "mcpu": "haswell"},
        "x86-64-v4": {"mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"},
        "x86-64-vnni": {"mtriple": "x86_64-linux-gnu", "mcpu": "cascadelake"},
        **_LINUX,
        **_ANDROID,
        "macos-arm64": {"mtriple": "arm64-apple-macosx13", "mcpu": "apple-a14"},
    }
)
PROCESSORS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "x86-64-v3": "AVX2: Haswell, Zen",
        "x86-64-v4": "AVX512: Skylake-X",
        "x86-64-vnni": "AVX512-VNNI: Cascade Lake, Zen 4",
        "arm64-v8.0": "Cortex-A53, A72",
        "arm64-v8.2": "dotprod: Cortex-A55, A76, Neoverse N1",
        "arm64-v8.6": "i8mm: Cortex-A710, Neoverse V1, N2",
        "macos-arm64": "Apple M1",
    }
)
