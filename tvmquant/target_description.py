"""What a target is, and what it multiplies with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tvmquant.schedules.isa import binary_dot_products, dot_products
from tvmquant.target import parse_target, supported_features, triple_of

# What a board's processor is likely to be told by.
FEATURES: Final = (
    "avx2", "avxvnni", "avx512bw", "avx512vnni", "avx512vpopcntdq", "neon", "dotprod", "i8mm",
)  # fmt: skip


@dataclass(frozen=True)
class Described:
    """A target, and how it computes layers of some bits.

    Parameters
    ----------
    name : str
        As given.
    triple, processor : str
        As LLVM calls them.
    features : tuple of str
        Of `FEATURES`.
    instructions : dict of str to str
        By the choice of bits, the dot product of its kernels (`schedules.isa`), with what it gains
        where that is memory only.
    """

    name: str
    triple: str
    processor: str
    features: tuple[str, ...]
    instructions: dict[str, str]


def describe_target(name: str) -> Described:
    """Describe a target.

    Parameters
    ----------
    name : str
        As of `tvmquant.target.parse_target`.

    Raises
    ------
    TargetError
        When it is none.
    """
    target = parse_target(name)
    present = supported_features(target)
    whole, bits = dot_products(target)[0], binary_dot_products(target)[0]
    narrow = f"{whole.name}, 16-bit sums" if whole.saturates else f"{whole.name}, less memory"
    return Described(
        name, triple_of(target.attrs), str(target.attrs.get("mcpu", "generic")),
        tuple(feature for feature in FEATURES if feature in present),
        {"w8a8": whole.name, "w4a8": narrow, "w4a4": narrow, "w1a1": bits.name},
    )  # fmt: skip
