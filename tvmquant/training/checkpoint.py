"""Where a training stands: written after every epoch, so that a killed one goes on."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import TrainingError


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
    """

    def __init__(self, path: Path, identity: dict[str, str], parts: dict[str, _Stateful]) -> None:
        self.path, self.identity, self.parts = path, identity, parts

    def load(self) -> list[dict[str, float]]:
        """Load the parts, and return what is known of the epochs that are done.

        Raises
        ------
        TrainingError
            When the file is of another training, or no checkpoint; says what differs.
        """
        if not self.path.exists():
            return []
        try:
            state = torch.load(self.path, weights_only=True)
            identity, history = state["identity"], state["history"]
        except (RuntimeError, EOFError, LookupError, TypeError, UnpicklingError) as error:
            raise TrainingError(f"{self.path}: is no checkpoint ({error})") from error
        for name, mine in self.identity.items():
            if identity.get(name) != mine:
                raise TrainingError(
                    f"{self.path}: is of a training whose {name} differs; continue that, or choose "
                    "another folder"
                )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return list(history)

    def save(self, history: list[dict[str, float]]) -> None:
        """Write the parts; the file is complete or the one before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        with atomic_write(self.path) as file:
            torch.save({"identity": self.identity, "history": history, **parts}, file)
