"""Decoding of pictures to pixels, by Pillow."""

from __future__ import annotations

import io
import warnings
from pathlib import PurePath
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Channels = Literal["rgb", "grayscale"]

MODES: dict[str, tuple[str, int]] = {"rgb": ("RGB", 3), "grayscale": ("L", 1)}
"""Pillow's name of each choice of channels, and their number."""

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow's others can start further programs
_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_DEEP_MODES = ("I", "F")  # I;16 and so on: Pillow cuts off their values where it should scale them


def is_picture(name: str) -> bool:
    """Whether a file's ending is that of a picture."""
    return PurePath(name).suffix.lower() in _ENDINGS


def open_picture(content: bytes, shown: str) -> Image.Image:
    """Read a picture's header; its pixels are decoded later.

    Args:
        content: The file's content.
        shown: The file's name, for messages.

    Raises:
        ValueError: If it is no picture, or has more pixels than Pillow deems safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=_FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{shown} has more than {Image.MAX_IMAGE_PIXELS} pixels, as files do that are made to exhaust memory: "
            "shrink it, or leave it out"
        ) from error
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"{shown} is no readable picture: replace it, or leave it out") from error


def pixels_of(image: Image.Image, shown: str, image_size: int, channels: Channels) -> NDArray[np.uint8]:
    """Decode a picture and resize it, regardless of its proportions, to a square, ``[channels, size, size]``.

    It is turned as its camera noted; transparent pixels become white. The filter is Lanczos', as in the preparation of
    miniImageNet and Omniglot by Finn, Abbeel, Levine (ICML 2017).

    Raises:
        ValueError: If the picture is damaged, or has more than 8 bits per channel.
    """
    if image.mode.split(";")[0] in _DEEP_MODES:
        raise ValueError(f"{shown} has more than 8 bits per channel (mode {image.mode}): convert it to 8 bits")
    try:
        image = ImageOps.exif_transpose(image)
        if "A" in image.getbands() or "transparency" in image.info:
            opaque = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(opaque, image.convert("RGBA"))
        resized = image.convert(MODES[channels][0]).resize((image_size, image_size), Image.Resampling.LANCZOS)
    except Exception as error:  # as above
        raise ValueError(f"{shown} is no intact picture ({error}): replace it, or leave it out") from error
    pixels = np.asarray(resized, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
