"""What code is compiled for: one value, made once and handed down.

Light: a `Machine` can be compared, hashed and sent to another process; TVM is loaded where one is
made and where its target is asked for.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tvmquant.devices.host import CPUINFO_NAMES, physical_cores
from tvmquant.errors import TargetError
from tvmquant.target import (
    MAX_THREADS,
    parse_target,
    supported_features,
    target_options,
    triple_of,
)

if TYPE_CHECKING:
    from typing import TypeAlias

    import tvm

    TargetLike: TypeAlias = "str | dict[str, Any] | tvm.target.Target | Machine"


@dataclass(frozen=True)
class Caches:
    """Sizes that the default tilings are cut to, in bytes.

    Parameters
    ----------
    first_level, second_level : int
        Of the data caches of one core. The defaults are the least that x86 processors with AVX2
        and more than 256 KiB have; what fits in these is not far from best on larger ones.
    line : int
    """

    first_level: int = 32 * 1024
    second_level: int = 512 * 1024
    line: int = 64


@dataclass(frozen=True)
class Machine:
    """What code is compiled for.

    Parameters
    ----------
    options : str
        Of the TVM target, as JSON with sorted keys.
    threads : int
        Threads to divide the work for, 1 to `MAX_THREADS`.
    caches : Caches
    features : frozenset of str
        Of the processor, as LLVM names them.

    Examples
    --------
    >>> machine = Machine.of("haswell", 2)
    >>> machine.threads, "avx2" in machine.features, machine == Machine.of("-mcpu=haswell", 2)
    (2, True, True)
    """

    options: str
    threads: int
    caches: Caches = Caches()
    # follow from the options
    features: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def of(
        cls, target: TargetLike = "native", threads: int | None = None, *, remote: bool = False
    ) -> Machine:
        """Describe a machine.

        Parameters
        ----------
        target : str, dict, Target or Machine
            As of `tvmquant.target.parse_target`. A machine is returned as it is, or with as many
            threads as are given.
        threads : int, optional
            Default: the physical cores of the machine that this process runs on.
        remote : bool
            Whether it is another one, whose threads must be given.

        Raises
        ------
        TargetError
            If the target is not valid, or threads are out of range or missing.
        """
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise TargetError(f"threads = {threads}; expected 1 to {MAX_THREADS}")
        if isinstance(target, Machine):
            return target if threads is None else target.with_threads(threads)
        if remote and threads is None:
            raise TargetError(
                "the threads of a device are not known here; pass threads (--threads)"
            )
        parsed = parse_target(target)
        return cls(
            options=json.dumps(target_options(parsed), sort_keys=True),
            threads=threads or physical_cores(),
            features=supported_features(parsed),
        )

    @property
    def target(self) -> tvm.target.Target:
        """The TVM target."""
        return _target(self.options)

    @property
    def triple(self) -> str:
        """What code is generated for, such as ``x86_64-pc-linux-gnu``."""
        return triple_of(json.loads(self.options))

    @property
    def required_features(self) -> list[str]:
        """Those of the features that decide whether compiled code runs, sorted."""
        return sorted(self.features & CPUINFO_NAMES.keys())

    def with_threads(self, threads: int) -> Machine:
        """Return the same machine with other threads."""
        return replace(self, threads=threads)


@functools.lru_cache
def _target(options: str) -> tvm.target.Target:
    # kept outside of the machines, which other processes receive
    import tvm

    return tvm.target.Target(json.loads(options))
