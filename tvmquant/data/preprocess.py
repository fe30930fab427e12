"""Preprocessing recipe: what turns a decoded image into the tensor that a network expects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from tvmquant.atomic_write import atomic_write
from tvmquant.errors import DataError

# Pixels along a side: beyond any camera, and short of running out of memory.
MAX_SIZE = 32768

PreprocessLike: TypeAlias = "Preprocess | str | os.PathLike[str] | Mapping[str, Any] | None"


class Preprocess(BaseModel):
    """Describe how an 8-bit image becomes a float32 tensor, in the order of the fields.

    ``y = (x * scale - mean) / std`` follows resize, crop and the choice of channel order, with
    ``x`` the 8-bit value in 0..255. A wrong field raises `DataError` naming it and its value.

    Parameters
    ----------
    resize : int or (int, int), optional
        Short side in pixels (the aspect ratio is kept, the long side rounds down), or exact
        ``(height, width)``. Bilinear with antialiasing. Default: not resized.
    crop : (int, int), optional
        ``(height, width)`` of the centre crop, whose top and left round down; one int means
        a square. Default: not cropped.
    color : {"RGB", "BGR", "GRAY"}
        Channel order of the result. Image files are converted to it; arrays are taken as RGB and
        one-channel arrays keep their channel.
    scale : float
        Factor applied first, such as ``1 / 255``.
    mean, std : tuple of float
        Per channel in the order of `color`, or a single value for all channels.
    layout : {"NCHW", "NHWC"}
        Layout of the batches.

    Examples
    --------
    >>> recipe = Preprocess.parse('{"crop": 32, "scale": 0.00392156862745098}')
    >>> recipe.crop
    (32, 32)
    >>> Preprocess.parse("squeezenet-caffe").color
    'BGR'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    color: Literal["RGB", "BGR", "GRAY"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    @model_validator(mode="wrap")
    @classmethod
    def _raise_data_error(
        cls, data: Any, handler: ModelWrapValidatorHandler[Preprocess]
    ) -> Preprocess:
        try:
            return handler(data)
        except ValidationError as error:
            raise DataError(_describe(error)) from error

    @field_validator("crop", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("resize", "crop")
    @classmethod
    def _positive_size(cls, value: Any) -> Any:
        sizes = value if isinstance(value, tuple) else (value,)
        if any(size is not None and not 1 <= size <= MAX_SIZE for size in sizes):
            raise ValueError(f"sizes must be 1 to {MAX_SIZE} pixels")
        return value

    @field_validator("scale")
    @classmethod
    def _nonzero_scale(cls, value: float) -> float:
        if value == 0.0:
            raise ValueError("must not be 0: every pixel would become the same")
        return value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _single_value(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (int, float)) else value

    @field_validator("mean", "std")
    @classmethod
    def _per_channel(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) not in (1, 3):
            raise ValueError("must hold one value, or three (one per channel)")
        return value

    @field_validator("std")
    @classmethod
    def _positive_std(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if min(value) <= 0.0:
            raise ValueError("must be positive")
        return value

    @classmethod
    def parse(cls, spec: PreprocessLike) -> Preprocess:
        """Return the recipe that `spec` stands for.

        Parameters
        ----------
        spec : Preprocess, str, path, mapping or None
            A recipe, a preset (see `PRESETS`), the path of a JSON file, inline JSON, or a mapping
            of fields. None means the preset "none".

        Raises
        ------
        DataError
            When the string is none of these, the JSON is damaged, or a field is wrong.
        """
        if isinstance(spec, Preprocess):
            return spec
        if spec is None:
            return PRESETS["none"]
        if isinstance(spec, Mapping):
            return cls.model_validate(dict(spec))
        text = os.fspath(spec)
        if text in PRESETS:
            return PRESETS[text]
        if text.lstrip().startswith("{"):
            return cls._from_json(text, "inline JSON")
        try:
            return cls._from_json(Path(text).read_text(encoding="utf-8"), text)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"preprocessing {text!r} is neither a preset ({', '.join(PRESETS)}), nor inline "
                f"JSON, nor a readable JSON file: {error}"
            ) from error

    @classmethod
    def _from_json(cls, text: str, where: str) -> Preprocess:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"preprocessing recipe {where} is not valid JSON: {error}") from error
        return cls.model_validate(fields)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recipe as a JSON file that `parse` reads back."""
        with atomic_write(path) as part:
            part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def apply(self, image: Image.Image | NDArray[np.uint8], name: str) -> NDArray[np.float32]:
        """Turn one image into one tensor.

        Parameters
        ----------
        image : PIL image, or uint8 array of shape (H, W), (H, W, C) or (C, H, W), C in {1, 3}
            Where both the last and the first extent of an array are 1 or 3, the last is taken as C.
        name : str
            What error messages call the image.

        Returns
        -------
        array of float32, shape (C, H, W) or (H, W, C) as `layout` says, contiguous

        Raises
        ------
        DataError
            When the array is no image, or is smaller than the crop.
        """
        pixels = self._pixels(image, name)
        channels = pixels.shape[2]
        for field in ("mean", "std"):
            if len(getattr(self, field)) not in (1, channels):
                raise DataError(
                    f"{name}: the image has {channels} channel(s), but the preprocessing field "
                    f"{field!r} holds {len(getattr(self, field))} values {getattr(self, field)}"
                )
        tensor = pixels.astype(np.float32)
        tensor *= np.float32(self.scale)
        tensor -= np.asarray(self.mean, np.float32)
        tensor /= np.asarray(self.std, np.float32)
        return self._laid_out(tensor)

    @property
    def cuts(self) -> bool:
        """Whether pixels are resized, cropped or brought into another order of colours."""
        return self.resize is not None or self.crop is not None or self.color != "RGB"

    def pixels(
        self, image: Image.Image | NDArray[np.uint8], name: str, to: str, dtype: str
    ) -> NDArray[np.uint8]:
        """Turn one image into the pixels that a network with integer inputs takes.

        Parameters
        ----------
        image, name
            As of `apply`.
        to, dtype : str
            What messages call the input, and its type.

        Returns
        -------
        array of uint8, shape (C, H, W) or (H, W, C) as `layout` says, contiguous

        Raises
        ------
        DataError
            As `apply`; and when the recipe normalizes.
        """
        if (self.scale, set(self.mean), set(self.std)) != (1.0, {0.0}, {1.0}):
            raise DataError(
                f"{name}: the preprocessing recipe normalizes (scale = {self.scale}, mean = "
                f"{self.mean}, std = {self.std}), but the model's {to} takes {dtype}: it normalizes"
                " by itself; leave 'scale', 'mean' and 'std' out of the recipe"
            )
        return self._laid_out(self._pixels(image, name))

    def _pixels(self, image: Image.Image | NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
        if isinstance(image, Image.Image):
            pixels = _resize(image.convert("L" if self.color == "GRAY" else "RGB"), self.resize)
        else:
            pixels = _channels_last(image, name)
            if self.resize is not None:
                squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
                picture = Image.fromarray(np.ascontiguousarray(squeezed))
                pixels = _resize(picture, self.resize)
        if self.crop is not None:
            pixels = _centre_crop(pixels, self.crop, name)
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        return pixels

    def _laid_out(self, array: NDArray[Any]) -> NDArray[Any]:
        if self.layout == "NCHW":
            array = array.transpose(2, 0, 1)
        return np.ascontiguousarray(array)


def _describe(error: ValidationError) -> str:
    problems = []
    for detail in error.errors():
        field = ".".join(str(part) for part in detail["loc"]) or "recipe"
        problem = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            problem = f"no such field; the fields are {', '.join(Preprocess.model_fields)}"
        problems.append(f"field {field!r} = {detail['input']!r}: {problem}")
    return "preprocessing recipe: " + "; ".join(problems)


def _channels_last(image: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if image.ndim == 2:
        return image[:, :, None]
    if image.ndim == 3 and image.shape[2] in (1, 3):
        return image
    if image.ndim == 3 and image.shape[0] in (1, 3):
        return image.transpose(1, 2, 0)
    raise DataError(
        f"{name}: a uint8 item of shape {image.shape} is no image; expected (H, W), (H, W, C) or "
        "(C, H, W) with C = 1 or 3. Convert data that are not images to float32"
    )


def _resize(image: Image.Image, size: int | tuple[int, int] | None) -> NDArray[np.uint8]:
    if size is not None:
        width, height = image.size
        if isinstance(size, int):
            short = min(height, width)
            size = (height * size // short, width * size // short)
        if size != (height, width):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _centre_crop(pixels: NDArray[np.uint8], size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    if height < size[0] or width < size[1]:
        raise DataError(
            f"{name}: the image is {height}x{width} (height x width), smaller than the centre crop "
            f"{size[0]}x{size[1]}; set 'resize' in the preprocessing recipe"
        )
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return pixels[top : top + size[0], left : left + size[1]]


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

PRESETS: Mapping[str, Preprocess] = {
    "none": Preprocess(),
    "imagenet": Preprocess(
        resize=256, crop=(224, 224), scale=1 / 255, mean=_IMAGENET_MEAN, std=_IMAGENET_STD
    ),
    "cifar10": Preprocess(scale=1 / 255, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
    "squeezenet-caffe": Preprocess(crop=(227, 227), color="BGR", mean=(104.0, 117.0, 123.0)),
}
