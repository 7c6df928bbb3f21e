"""Small folders of pictures, made for tests."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_meta import ImageFolderDataModule

SMALL = {"ways": 2, "shots": 1, "query_shots": 2, "image_size": 8, "tasks_per_batch": 2}


def picture(seed: int, size: tuple[int, int] = (12, 10), mode: str = "RGB", file_format: str = "PNG") -> bytes:
    """Make a file of random pixels."""
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, file_format)
    return file.getvalue()


def files(splits: dict[str, int] | None = None, each: int = 4) -> dict[str, bytes]:
    """Make the pictures of some classes per split, by their names; of two kinds of files and several sizes."""
    made, seed = {}, 0
    for split, classes in ({"train": 3, "val": 2, "test": 2} if splits is None else splits).items():
        for number in range(classes):
            for i in range(each):
                seed += 1
                ending, kind = ("JPG", "JPEG") if i % 2 else ("png", "PNG")
                made[f"{split}/{split}_{number}/{i}.{ending}"] = picture(seed, (10 + i, 12), file_format=kind)
    return made


def write(root: Path, made: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, content in made.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def module(root: Path | str, **options: Any) -> ImageFolderDataModule:
    """Make a small data module."""
    return ImageFolderDataModule(root, **{**SMALL, **options})


def expected(content: bytes, size: int = 8, mode: str = "RGB") -> np.ndarray:
    """Decode a picture here on its own, ``[channels, size, size]``."""
    image = Image.open(io.BytesIO(content)).convert(mode).resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.array(image).reshape(size, size, -1)
    return pixels.transpose(2, 0, 1)
