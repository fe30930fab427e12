"""Data for networks of the user: files with their preprocessing, or synthesised ones.

A table (TOML) says for each network, by the name of its file, what it is to be calibrated with and
evaluated on, so that one command measures many::

    ["320n.onnx"]
    data = "imagenet-1000.tar"
    preprocess = { resize = [320, 320], scale = 0.00392156862745098 }
    input_shape = "images=?,3,320,320"

    ["nmp.onnx"]
    data = "tones"
    rate = 22050

The name may be a pattern such as ``silero_*.onnx``; the first one that fits is taken. ``data`` is a
file as of `tvmquant.data.open_data`, looked for beside the table's folder of data, or the name of
one of `SYNTHETIC`, whose further keys it takes.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.errors import DataError, TVMQuantError

Array = NDArray[Any]
Shape = tuple[int | None, ...]

DEFAULT_TABLE = Path(__file__).with_name("real.toml")
SAMPLE_RATE = 16000
# of a spectrum: window and step in samples at SAMPLE_RATE
WINDOW, STEP = 400, 160


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a network is fed with.

    Attributes
    ----------
    data : str
        File, or one of `SYNTHETIC`.
    preprocess : mapping or str, optional
        As of `tvmquant.Preprocess.parse`.
    input_shape : str, optional
        As of ``tvmquant compile --input-shape``; several are separated by spaces.
    options : mapping
        Of the synthesis.
    """

    data: str
    preprocess: Any = None
    input_shape: str | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def items(self, shape: Shape, folder: Path, count: int) -> Array:
        """Return up to `count` inputs, spread over all that there are.

        Parameters
        ----------
        shape : tuple of int or None
            Of one item, without the batch; None for an extent that the data decide.
        folder : Path
            Where files that are not found as they are named are looked for.
        count : int

        Raises
        ------
        DataError
            When there are no such data, or they do not fit the shape.
        """
        if self.data in SYNTHETIC:
            return SYNTHETIC[self.data](count, _known(shape, self.data), **self.options)
        from tvmquant.data import open_data

        path = Path(self.data) if Path(self.data).exists() else folder / self.data
        found = open_data(path, self.preprocess, input_shape=shape)
        found = found.subset(step=max(1, len(found) // count), limit=count)
        return np.concatenate([batch for batch, _ in found])


def read_table(path: Path) -> dict[str, Recipe]:
    """Read the recipes of a table, in its order.

    Raises
    ------
    DataError
        When it cannot be read, or an entry lacks ``data``.
    """
    try:
        entries = _toml().loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--table {path}: {error}") from error
    recipes = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
            raise DataError(
                f'--table {path}: {name!r} says no data; expected a section such as ["{name}"] '
                'with data = "FILE"'
            )
        fields = {k: entry.pop(k) for k in ("data", "preprocess", "input_shape") if k in entry}
        recipes[name] = Recipe(**fields, options=entry)
    return recipes


def find_recipe(recipes: Mapping[str, Recipe], model: Path) -> Recipe | None:
    """Return the first recipe whose pattern the file's name fits."""
    for pattern, recipe in recipes.items():
        if fnmatch.fnmatch(model.name, pattern):
            return recipe
    return None


def tones(
    count: int, shape: Sequence[int], *, rate: int = SAMPLE_RATE, scale: float = 1.0
) -> NDArray[np.float32]:
    """Synthesise sound: harmonic tones that rise, fade and tremble, in noise.

    Parameters
    ----------
    count : int
    shape : sequence of int
        Of an item; its product is the number of samples.
    rate : int
        Samples a second.
    scale : float
        Of full scale; 32767 for networks that take 16-bit integers as floats.

    Returns
    -------
    array of float32, (count, *shape)
    """
    length = int(np.prod(shape))
    seconds = np.arange(length) / rate
    whole = length / rate
    rng = np.random.default_rng(0)
    items = np.zeros((count, length))
    for item in items:
        for _ in range(int(rng.integers(1, 5))):
            frequency = rng.uniform(80, 900) * (1 + 0.02 * np.sin(2 * np.pi * 5 * seconds))
            phase = 2 * np.pi * np.cumsum(frequency) / rate
            begin, fade = rng.uniform(-0.3, 0.7) * whole, rng.uniform(0.1, 0.6) * whole
            envelope = np.clip((seconds - begin) / 0.02, 0, 1)
            envelope *= np.exp(-np.clip(seconds - begin, 0, None) / fade)
            decay = rng.uniform(0.7, 1.8)
            item += envelope * sum(np.sin(h * phase) / h**decay for h in range(1, 9))
        item += rng.normal(0, 10 ** rng.uniform(-3.5, -1.3), length)
        item *= rng.uniform(0.1, 0.95) / np.abs(item).max()
    return np.float32(scale) * items.astype(np.float32).reshape(count, *shape)


def spectra(
    count: int,
    shape: Sequence[int],
    *,
    bands: int = 0,
    scale: float = 1.0,
    offset: float = 0.0,
    floor: float = 1e-10,
) -> NDArray[np.float32]:
    """Synthesise spectrograms: decimal logarithms of the energy of `tones` in bands of pitch.

    Parameters
    ----------
    count : int
    shape : sequence of int
        Of an item: frames and bands, and any extents of 1.
    bands : int
        The axis of the bands, among the extents that are not 1: 0 or 1.
    scale, offset, floor : float
        ``scale * log10(max(energy, floor)) + offset``.

    Returns
    -------
    array of float32, (count, *shape)
    """
    extents = [extent for extent in shape if extent != 1]
    height, frames = extents[bands], extents[1 - bands]
    sound = tones(count, (WINDOW + STEP * (frames - 1),))
    windows = np.lib.stride_tricks.sliding_window_view(sound, WINDOW, axis=1)[:, ::STEP]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW))) ** 2
    bins = np.arange(power.shape[-1]) * SAMPLE_RATE / WINDOW
    edges = 700 * (np.exp(np.linspace(0, np.log1p(SAMPLE_RATE / 1400), height + 2)) - 1)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    energy = power @ np.clip(np.minimum(rising, falling), 0, None).T
    values = scale * np.log10(np.maximum(energy, floor)) + offset
    if bands == 0:
        values = values.transpose(0, 2, 1)
    return values.astype(np.float32).reshape(count, *shape)


def walks(
    count: int, shape: Sequence[int], *, scale: float = 1.0, memory: float = 0.8
) -> NDArray[np.float32]:
    """Draw features that change slowly along the first axis, each step normal with `scale`."""
    steps = np.random.default_rng(0).normal(size=(count, *shape))
    for before, step in zip(range(shape[0]), range(1, shape[0]), strict=False):
        steps[:, step] = memory * steps[:, before] + (1 - memory**2) ** 0.5 * steps[:, step]
    return (scale * steps).astype(np.float32)


def text_lines(
    count: int, shape: Sequence[int], *, scale: float = 1 / 255, mean: float = 0.0
) -> NDArray[np.float32]:
    """Draw lines of letters and digits, dark on light: ``(pixel * scale - mean)`` of grey values.

    Parameters
    ----------
    count : int
    shape : sequence of int
        Of an item: one or three equal channels, height, width.
    scale, mean : float
    """
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(0)
    channels, height, width = shape
    pages = np.empty((count, height, width), np.float32)
    letters = list("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz23456789")
    for page in pages:
        image = Image.new("L", (width, height), int(rng.integers(180, 256)))
        font = ImageFont.load_default(size=int(rng.uniform(0.45, 0.7) * height))
        text = "".join(rng.choice(letters, max(1, 2 * width // height)))
        at = (int(rng.integers(0, 20)), int(rng.uniform(0.05, 0.25) * height))
        ImageDraw.Draw(image).text(at, text, fill=int(rng.integers(0, 90)), font=font)
        page[:] = (np.asarray(image) + rng.normal(0, 6, page.shape)).clip(0, 255)
    values = pages * np.float32(scale) - np.float32(mean)
    return np.repeat(values[:, None], channels, axis=1)


def file_bytes(count: int, shape: Sequence[int], *, empty: int = 256) -> NDArray[np.int32]:
    """Return beginnings and ends of this project's files as tokens, one a byte; `empty` pads."""
    half = int(np.prod(shape)) // 2
    items = np.full((count, 2 * half), empty, np.int32)
    root = Path(__file__).resolve().parents[1]
    files = [path for part in ("benchmarks", "passes") for path in root.glob(f"{part}/**/*.py")]
    for item, path in zip(items, sorted(files)[:: max(1, len(files) // count)], strict=False):
        content = np.frombuffer(path.read_bytes(), np.uint8)
        item[: len(content[:half])] = content[:half]
        item[2 * half - len(content[-half:]) :] = content[-half:]
    return items.reshape(count, *shape)


SYNTHETIC: dict[str, Callable[..., Array]] = {
    "tones": tones,
    "spectra": spectra,
    "walks": walks,
    "text_lines": text_lines,
    "file_bytes": file_bytes,
}


def _known(shape: Shape, data: str) -> tuple[int, ...]:
    extents = tuple(extent for extent in shape if extent is not None)
    if len(extents) != len(shape):
        raise DataError(
            f"data {data!r} are made for a shape, and the model leaves {shape} open; say its "
            "input_shape"
        )
    return extents


def _toml() -> Any:
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise TVMQuantError(
                "the table of networks needs Python 3.11 or `pip install tomli`"
            ) from error
    return tomllib
