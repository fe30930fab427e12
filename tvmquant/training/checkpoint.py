"""Where a training stands: written now and then, so that a killed one goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import TrainingError
from tvmquant.training.distributed import rank


class _Stateful(Protocol):
    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoint:
    """A file of the parts of a training.

    Parameters
    ----------
    path : Path
    identity : dict of str to str
        What a training is told by from others: a checkpoint of another is refused.
    parts : dict of str to what has a state_dict
        Can be set later.

    Attributes
    ----------
    partial : dict of str to float
        What is known of an epoch that is not done, empty between epochs.
    """

    def __init__(
        self, path: Path, identity: dict[str, str], parts: dict[str, _Stateful] | None = None
    ) -> None:
        self.path, self.identity, self.parts = path, identity, parts or {}
        self.partial: dict[str, float] = {}

    def phase(self) -> int | None:
        """Return the number of the phase that the file was written in; None without a file.

        Raises
        ------
        TrainingError
            When the file is of another training, or no checkpoint; says what differs.
        """
        state = self._read()
        return None if state is None else int(state["phase"])

    def load(self) -> list[dict[str, float]]:
        """Load the parts, and return what is known of the epochs that are done.

        Raises
        ------
        TrainingError
            As of `phase`.
        """
        state = self._read()
        if state is None:
            return []
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (RuntimeError, LookupError, ValueError) as error:
            raise TrainingError(
                f"{self.path}: was written by another version of tvmquant; choose another folder "
                f"({error})"
            ) from error
        self.partial = dict(state["partial"])
        return list(state["history"])

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
            identity = state["identity"]
            _ = state["history"], state["partial"], state["phase"]
        except (RuntimeError, EOFError, LookupError, TypeError, UnpicklingError) as error:
            raise TrainingError(f"{self.path}: is no checkpoint ({error})") from error
        for name, mine in self.identity.items():
            if identity.get(name) != mine:
                raise TrainingError(
                    f"{self.path}: is of a training whose {name} differs"
                    f"{_difference(identity.get(name), mine)}; continue that, or choose another "
                    "folder"
                )
        return state

    def save(
        self,
        history: list[dict[str, float]],
        phase: int = 0,
        partial: dict[str, float] | None = None,
    ) -> None:
        """Write the parts; the file is complete or the one before.

        Only the first of several processes writes.
        """
        if rank() != 0:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self.identity, "history": history, "phase": phase,
            "partial": partial or {},
        }  # fmt: skip
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_write(self.path) as file:
            torch.save({**state, **parts}, file)


def _difference(saved: str | None, mine: str) -> str:
    """Return which field of two recipes differs; nothing of what are no JSON objects."""
    if saved is None or not saved.startswith("{") or not mine.startswith("{"):
        return ""
    before, now = (dict(_fields(json.loads(text))) for text in (saved, mine))
    missing = object()
    for field in before | now:
        old, new = before.get(field, missing), now.get(field, missing)
        if old != new:
            told = ["unknown" if value is missing else repr(value) for value in (old, new)]
            return f" ({field} was {told[0]}, and is {told[1]})"
    return ""


def _fields(document: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(document, dict):
        yield path, document
        return
    for name, value in document.items():
        yield from _fields(value, f"{path}.{name}" if path else name)
