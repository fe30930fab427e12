"""The manifest that lies beside a built library: what it is, what it needs, how to call it.

Plain dataclasses and JSON, so that loading an artefact needs TVM's runtime and NumPy only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from tvmquant.deploy.checked_json import DamageError, read_as
from tvmquant.entries import entry_name
from tvmquant.errors import ArtifactError
from tvmquant.formats import LEAST_BITS

SCHEMA_VERSION = 1
LIBRARY_NAME = "model.so"
MANIFEST_NAME = "manifest.json"


class Named(TypedDict):
    """What has a name."""

    name: str


class BuildSettings(TypedDict, total=False):
    """All that a build follows from; here what is read of it, the rest is only compared."""

    input_shapes: dict[str, list[int | None]]


class ModelFacts(Named, total=False):
    """The network, and the ONNX file it came from, where known."""

    path: str
    sha256: str
    bytes: int
    settings: BuildSettings
    reconstruction: str


class TargetFacts(TypedDict):
    """The target as TVM prints it, and what the processor must have."""

    config: str
    triple: str
    features: list[str]


class Versions(TypedDict):
    """Of what built the library."""

    tvmquant: str
    tvm: str


class LibraryFacts(TypedDict):
    """Of the file of the library."""

    sha256: str
    bytes: int


class FloatOperator(TypedDict):
    """An operator that stayed float, the ONNX node it came from, and why."""

    op: str
    node: str
    reason: str


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
        ``"float32"``, or the type of an input of integers, which is its raw type too.
    layout : str
        ``"NCHW"`` for four dimensions, else ``""``.
    scale : float or None
        Of the raw integers: real = scale * (q - zero_point), the largest where parts of the tensor
        have scales of their own (`scales`). None where the tensor has no raw form.
    zero_point : int
    raw_shape : list of int
        Shape of the raw integers.
    raw_dtype : str
    raw_layout : str
        ``"NHWC"`` where the kernel at the border moves the channels, else as ``layout``.
    raw_range : list of int
        The least and the greatest of the raw integers that an input may hold: fewer than its type's
        where the layers that read it take fewer bits. Empty for outputs.
    factors : list of float
        Of the scale, in (0, 1], by position of ``factors_shape``; empty where there is one scale.
    factors_shape : list of int
        Shape of the factors, which broadcasts against the raw integers.
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
    factors: list[float] = field(default_factory=list)
    factors_shape: list[int] = field(default_factory=list)
    raw_range: list[int] = field(default_factory=list)

    @property
    def scales(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The scale as an array that broadcasts against the raw integers: (1,) where it is one.

        Raises
        ------
        ArtifactError
            Where the tensor has no raw form.
        """
        if self.scale is None:
            raise ArtifactError(f"tensor {self.name!r} has no raw form, and so no scale")
        factors = np.asarray(self.factors or [1.0]).reshape(self.factors_shape or [1])
        return (self.scale * factors).astype(np.float32)


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
    choice : str
        Of a contraction, such as ``w4a8g32``; ``""`` where there is none.
    weight_format, activation_format : str
        What its weight and the activation that it reads hold, by name (`tvmquant.formats`).
    compute_dtype : str
        Integer width of the requantization, ``""`` where there is none.
    weight_pairs : str
        ``"bounded"``: the weight is rounded so that neighbours fit 16 bits
        (`tvmquant.weight_pairs`); ``"free"``: it is not; ``""`` where there is none, or an earlier
        version of tvmquant built the library.
    dynamic : bool
        Of a contraction: the range of the activation that it reads is found at run time.
    channel_widths : list of int
        Of a weight whose output channels fit fewer bits than its format has: how many fit 2, 3 and
        so on, to 8 bits; each is stored at its own. Empty where that makes no difference.
    """

    id: str
    op: str
    kernel: str
    shape: list[int]
    dtype: str
    macs: int = 0
    choice: str = ""
    weight_format: str = ""
    activation_format: str = ""
    compute_dtype: str = ""
    weight_pairs: str = ""
    dynamic: bool = False
    channel_widths: list[int] = field(default_factory=list)


def describe_choice(choice: str, dynamic: bool, channel_widths: Sequence[int] = ()) -> str:
    """Return in words what `LayerInfo` says of a layer's bits."""
    mean = mean_width(channel_widths)
    words = [choice, *(["dynamic"] if dynamic else []), *([f"(w {mean:.2f})"] if mean else [])]
    return " ".join(words)


def mean_width(channel_widths: Sequence[int]) -> float:
    """Return the mean of what `LayerInfo.channel_widths` says, in bits; 0.0 of nothing."""
    channels = sum(channel_widths)
    bits = sum(width * count for width, count in enumerate(channel_widths, LEAST_BITS))
    return bits / channels if channels else 0.0


def describe_pairs(weight_pairs: Iterable[str]) -> str:
    """Return in words what `LayerInfo.weight_pairs` of all layers say; empty where none does."""
    known = [pairs for pairs in weight_pairs if pairs]
    bounded = known.count("bounded")
    if not bounded:
        return "free" if known else ""
    return f"bounded in {bounded} of {len(known)} layers"


@dataclass(frozen=True)
class Variant:
    """The network at another bit width: what a `Manifest` says of that of the widest.

    Parameters
    ----------
    width : int
        Bits.
    inputs, outputs : list of TensorInfo
    layers : list of LayerInfo
    float_audit : list of FloatOperator
    has_raw : bool
    """

    width: int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    layers: list[LayerInfo]
    float_audit: list[FloatOperator]
    has_raw: bool


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``; see the fields of its parts.

    Parameters
    ----------
    model : ModelFacts
    inputs, outputs : list of TensorInfo
    target : TargetFacts
    threads : int
        Default number of threads.
    layers : list of LayerInfo
    float_audit : list of FloatOperator
    versions : Versions
    library : LibraryFacts
    preprocess : dict or None
        Recipe with which the calibration images were read.
    has_raw : bool
        Whether the library can be called with raw integers.
    width : int
        Bits, of a library that has several widths; 0 of any other.
    variants : list of Variant
        The other widths.
    schema_version : int
    """

    model: ModelFacts
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    target: TargetFacts
    threads: int
    layers: list[LayerInfo]
    float_audit: list[FloatOperator]
    versions: Versions
    library: LibraryFacts
    preprocess: dict[str, Any] | None = None
    has_raw: bool = False
    width: int = 0
    variants: list[Variant] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def widths(self) -> list[int]:
        """The bit widths to choose from, the widest first; empty where there is one."""
        others = {variant.width for variant in self.variants}
        return sorted({self.width, *others} - {0}, reverse=True)

    def at(self, width: int | None) -> Manifest:
        """Return the manifest of the network at a bit width; by default of the widest.

        Raises
        ------
        ArtifactError
            If the library has no such width.
        """
        if width is None or width == self.width != 0:
            return self
        for found in self.variants:
            if found.width == width:
                names = [part.name for part in fields(Variant)]
                own = Variant(**{name: getattr(self, name) for name in names})
                others = [own, *(variant for variant in self.variants if variant != found)]
                network = {name: getattr(found, name) for name in names}
                return replace(self, **network, variants=others)
        known = f"has the widths {', '.join(map(str, self.widths))}"
        if not self.widths:
            known = "was built at one choice of bit widths; leave width out"
        raise ArtifactError(f"width {width}: the library of {self.model['name']!r} {known}")

    def entry(self, function: str) -> str:
        """Return the name of the library's function at this manifest's width."""
        widest = max(self.widths, default=0)
        return entry_name(function, self.width if self.width < widest else 0)

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
        except (ValueError, RecursionError) as error:  # of JSON or UTF-8; nested too deeply
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
            manifest: Manifest = read_as(data, cls)
            manifest._check()
        except DamageError as damage:
            raise ArtifactError(f"{path}: {damage}; build the model again") from None
        return manifest

    def _check(self) -> None:
        """Check what the types of the fields do not say."""
        if self.threads < 1:
            raise DamageError(f"field 'threads' is {self.threads}; expected at least 1")
        _check_tensors(self)
        for variant in self.variants:
            _check_tensors(variant)


def _check_tensors(network: Manifest | Variant) -> None:
    for name in ("inputs", "outputs"):
        if not getattr(network, name):
            raise DamageError(f"field {name!r} lists nothing")
    for tensor in (*network.inputs, *network.outputs):
        if not _is_dtype(tensor.dtype) or (network.has_raw and not _is_dtype(tensor.raw_dtype)):
            raise DamageError(f"tensor {tensor.name!r} has no valid dtype")
        if network.has_raw and tensor.scale is None:
            raise DamageError(f"tensor {tensor.name!r} lacks the scale of its raw form")
        if math.prod(tensor.factors_shape) != max(len(tensor.factors), 1):
            raise DamageError(f"tensor {tensor.name!r} has factors of another shape")


def _is_dtype(name: str) -> bool:
    return name in np.sctypeDict and np.dtype(name).kind in "fiub"


def is_manifest(path: Path) -> bool:
    """Whether a file is a manifest of tvmquant, of any version and perhaps damaged inside."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"schema_version", "library", "layers"} <= data.keys()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
