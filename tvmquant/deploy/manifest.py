"""The manifest that lies beside a built library: what it is, what it needs, how to call it.

Plain dataclasses and JSON, so that loading an artefact needs TVM's runtime and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tvmquant.errors import ArtifactError

SCHEMA_VERSION = 1
LIBRARY_NAME = "model.so"
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class TensorInfo:
    """One input or output.

    Parameters
    ----------
    name : str
        As in the ONNX model.
    shape : list of int
        Float shape, batch bound.
    dtype : str
        ``"float32"``.
    layout : str
        ``"NCHW"`` for four dimensions, else ``""``.
    scale : float or None
        Of the raw integers: real = scale * (q - zero_point). None where the tensor has no raw form.
    zero_point : int
    raw_shape : list of int
        Shape of the raw integers.
    raw_dtype : str
    raw_layout : str
        ``"NHWC"`` where the kernel at the border moves the channels, else as ``layout``.
    """

    name: str
    shape: list[int]
    dtype: str = "float32"
    layout: str = ""
    scale: float | None = None
    zero_point: int = 0
    raw_shape: list[int] = field(default_factory=list)
    raw_dtype: str = ""
    raw_layout: str = ""


@dataclass(frozen=True)
class LayerInfo:
    """One kernel call, in execution order.

    Parameters
    ----------
    id : str
        Name of the ONNX node it computes (the first, where several are fused).
    op : str
        Operator of the integer graph, or ``float`` for an operator of the float audit.
    kernel : str
        Name of the kernel, which says operation, data types, instruction and tile.
    shape : list of int
        Shape of its output.
    dtype : str
    macs : int
        Multiply-accumulates, 0 where it has none.
    w_bits, a_bits : int or None
        Bit widths of a contraction.
    compute_dtype : str
        Integer width of the requantization, ``""`` where there is none.
    """

    id: str
    op: str
    kernel: str
    shape: list[int]
    dtype: str
    macs: int = 0
    w_bits: int | None = None
    a_bits: int | None = None
    compute_dtype: str = ""


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``; see the fields of its parts.

    Parameters
    ----------
    model : dict
        ``name``, ``path`` and ``sha256`` of the ONNX file (where known).
    inputs, outputs : list of TensorInfo
    target : dict
        ``config`` (as TVM prints it), ``triple`` and ``features`` the processor must have.
    threads : int
        Default number of threads.
    layers : list of LayerInfo
    float_audit : list of dict
        ``op``, ``node``, ``reason`` of every operator that stayed float.
    versions : dict
        Of tvmquant and TVM.
    library : dict
        ``sha256`` and ``bytes`` of ``model.so``.
    preprocess : dict or None
        Recipe with which the calibration images were read.
    has_raw : bool
        Whether the library can be called with raw integers.
    schema_version : int
    """

    model: dict[str, Any]
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    target: dict[str, Any]
    threads: int
    layers: list[LayerInfo]
    float_audit: list[dict[str, str]]
    versions: dict[str, str]
    library: dict[str, Any]
    preprocess: dict[str, Any] | None = None
    has_raw: bool = False
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write JSON to ``path`` (not atomic: the caller renames the folder)."""
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of an artefact.

        Raises
        ------
        ArtifactError
            If the folder, the manifest or one of its fields is missing or of another version.
        """
        path = folder / MANIFEST_NAME
        if not folder.is_dir():
            raise ArtifactError(f"{folder}: no such folder; expected one made by tvmquant.build")
        if not path.is_file():
            raise ArtifactError(f"{folder}: holds no {MANIFEST_NAME}; build the model again")
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError as error:  # of JSON, or of UTF-8
            raise ArtifactError(f"{path}: not valid JSON ({error}); build again") from None
        if not isinstance(data, dict):
            raise ArtifactError(f"{path}: expected a JSON object; build the model again")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path}: schema version {version!r}, this tvmquant reads {SCHEMA_VERSION}; "
                "build the model again, or use the tvmquant that built it"
            )
        try:
            _check(data, _MANIFEST)
            for name, types in _NESTED.items():
                _check(data[name], types, f"{name}.")
            values = _known(cls, data)
            for name, part in (
                ("inputs", TensorInfo),
                ("outputs", TensorInfo),
                ("layers", LayerInfo),
            ):
                for item in data[name]:
                    _check(item, _LAYER if part is LayerInfo else _TENSOR, f"{name}.")
                values[name] = [part(**_known(part, item)) for item in data[name]]
        except _DamageError as damage:
            raise ArtifactError(f"{path}: {damage}; build the model again") from None
        return cls(**values)


# The fields that a manifest must have, and their types in JSON.
_MANIFEST: dict[str, type] = {
    "model": dict, "inputs": list, "outputs": list, "target": dict, "threads": int, "layers": list,
    "float_audit": list, "versions": dict, "library": dict, "has_raw": bool,
}  # fmt: skip
_NESTED: dict[str, dict[str, type]] = {
    "target": {"config": str, "triple": str, "features": list},
    "versions": {"tvmquant": str, "tvm": str},
    "library": {"sha256": str, "bytes": int},
}
_TENSOR: dict[str, type] = {
    "name": str,
    "shape": list,
    "dtype": str,
    "raw_shape": list,
    "raw_dtype": str,
}
_LAYER: dict[str, type] = {"id": str, "op": str, "kernel": str, "shape": list, "dtype": str}


class _DamageError(Exception):
    """A manifest lacks a field, or a field is of another type."""


def _check(data: Any, types: dict[str, type], prefix: str = "") -> None:
    if not isinstance(data, dict):
        raise _DamageError(f"field {prefix.rstrip('.')!r} does not hold objects")
    for name, kind in types.items():
        if name not in data:
            raise _DamageError(f"field {prefix + name!r} is missing")
        if not isinstance(data[name], kind):
            raise _DamageError(f"field {prefix + name!r} is not of type {kind.__name__}")


def _known(cls: Any, data: dict[str, Any]) -> dict[str, Any]:
    """Return what a dataclass has fields for; a later tvmquant may have written more."""
    return {f.name: data[f.name] for f in fields(cls) if f.name in data}


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest of tvmquant, of any version and perhaps damaged inside."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"schema_version", "library", "layers"} <= data.keys()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
