"""Products of parameters of which every run takes only as many as meet all pairs of values."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def pairwise(
    *, strength: int = 2, **parameters: Iterable[Any]
) -> tuple[tuple[str, ...], list[Any]]:
    """Return the arguments of ``parametrize`` for a product, most of which is marked slow.

    What is not slow meets each ``strength`` values of as many parameters, chosen greedily.
    """
    values = [list(choices) for choices in parameters.values()]
    rows = list(itertools.product(*(range(len(choices)) for choices in values)))

    def met(row: tuple[int, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(row), strength))

    missing = set().union(*map(met, rows))
    kept = set()
    while missing:
        best = max(rows, key=lambda row: len(missing & met(row)))
        kept.add(best)
        missing -= met(best)
    return tuple(parameters), [
        pytest.param(
            *(choices[i] for choices, i in zip(values, row, strict=True)),
            marks=() if row in kept else pytest.mark.slow,
            id="-".join(
                _name(choices[i], f"{name}{i}")
                for name, choices, i in zip(parameters, values, row, strict=True)
            ),
        )
        for row in rows
    ]


def _name(value: Any, otherwise: str) -> str:
    if isinstance(value, (str, int, tuple)):
        return str(value)
    return getattr(value, "name", otherwise)
