"""Check a JSON document against dataclasses and typed dictionaries, with the standard library only.

The loader of a deployed library reads its manifest with this: pydantic, which checks the files that
tools exchange (`tvmquant.records`), is not there on the device.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict


class DamageError(Exception):
    """A document lacks a field, or a field holds what it cannot."""


_JSON_NAMES: dict[Any, str] = {
    str: "string", int: "whole number", float: "number", bool: "boolean", list: "list",
    dict: "object",
}  # fmt: skip


def read_as(value: Any, kind: Any, where: str = "") -> Any:
    """Return a JSON value as a type says.

    Fields that a dataclass does not know are left out: a later version wrote them. Keys that a
    typed dictionary does not know are kept as they are.

    Parameters
    ----------
    value
        What `json` reads.
    kind : type
        A dataclass, a typed dictionary, a plain JSON type, `Any`, or a list, dict or optional of
        these.
    where : str
        What messages call the value.

    Raises
    ------
    DamageError
        When a field is missing, or of another type; names it.
    """
    options = get_args(kind)
    if type(None) in options:
        return None if value is None else read_as(value, options[0], where)
    if kind is Any:
        return value
    is_object = is_dataclass(kind) or is_typeddict(kind)
    plain = dict if is_object else get_origin(kind) or kind
    fits = isinstance(value, (int, float) if plain is float else plain)
    if not fits or (isinstance(value, bool) and plain is not bool):
        raise DamageError(f"field {where!r} is not of type {_JSON_NAMES[plain]}")
    if is_object:
        return _read_object(value, kind, where)
    if plain is list:
        return [read_as(item, options[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if options:
        return {name: read_as(item, options[1], f"{where}.{name}") for name, item in value.items()}
    return value


def _read_object(value: dict[str, Any], kind: Any, where: str) -> Any:
    hints = get_type_hints(kind)
    if is_dataclass(kind):
        required = {f.name for f in fields(kind) if f.default is f.default_factory is MISSING}
    else:
        required = set(kind.__required_keys__)
    prefix = f"{where}." if where else ""
    if missing := sorted(required - value.keys()):
        raise DamageError(f"field {prefix + missing[0]!r} is missing")
    known = {
        name: read_as(value[name], hint, prefix + name)
        for name, hint in hints.items()
        if name in value
    }
    return {**value, **known} if is_typeddict(kind) else kind(**known)
