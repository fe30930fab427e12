"""Recipes as documents: read from files, changed field by field, and what is wrong with them."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tvmquant.errors import TrainingError


def names() -> list[str]:
    """Return the recipes that come with tvmquant."""
    return sorted(path.name[:-5] for path in _folder().iterdir() if path.name.endswith(".yaml"))


def document_of(source: str | Path) -> Any:
    """Return what the recipe of a name, or a YAML file, holds; a name goes before a file.

    Raises
    ------
    TrainingError
        When there is neither, or it cannot be read.
    """
    path = Path(source)
    try:
        if str(source) in names():
            text = (_folder() / f"{source}.yaml").read_text(encoding="utf-8")
        elif path.suffix in (".yaml", ".yml", ".json") or path.is_file():
            text = path.read_text(encoding="utf-8")
        else:
            raise TrainingError(
                f"no recipe {str(source)!r}; expected one of {', '.join(names())}, or a YAML file"
            )
        return yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TrainingError(f"recipe {source}: {error}") from error


def changed(document: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a document whose fields, such as ``optimizer.lr``, have other values.

    Raises
    ------
    ValueError
        When what a field is said to be in is no section.
    """
    found = copy.deepcopy(document)
    for field, value in changes.items():
        *path, last = field.split(".")
        part = found
        for key in path:
            if part.get(key) is None:  # a section that is not there yet
                part[key] = {}
            part = part[key]
            if not isinstance(part, dict):
                raise ValueError(f"{field}: {key} has no fields")
        part[last] = value
    return found


def told(error: ValidationError, model: type[BaseModel]) -> str:
    """Return which field of a document is wrong, what it is, and what is expected."""
    first = error.errors()[0]
    field, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"{field}: there is no such field{_hint(field, model)}"
    given = first["input"]
    if first["type"] == "model_type":
        inner = next(name for name in _fields(model) if name.startswith(f"{field}."))
        return f"{field}: {given!r} is no section; set its fields, such as {inner}"
    if isinstance(given, str | int | float | bool):
        message = f"{given!r}: {message[0].lower()}{message[1:]}"
    return f"{field}: {message}" if field else message


def _hint(field: str, model: type[BaseModel]) -> str:
    every, last = list(_fields(model)), field.rpartition(".")[2]
    close = [found for found in every if found.rpartition(".")[2] == last]
    close = close or difflib.get_close_matches(field, every, n=1)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the paths of all fields of a model, and of the sections in it."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _fields(kind, f"{prefix}{name}.")


def _folder() -> Any:
    return resources.files("tvmquant.training") / "recipes"
