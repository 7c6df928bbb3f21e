"""Small files in the form of Omniglot's."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_meta.data.vision import omniglot_files

BACKGROUND, EVALUATION = "images_background", "images_evaluation"
COUNTS = {BACKGROUND: 3, EVALUATION: 2}
# With a hyphen, names sort otherwise as strings than as paths, and otherwise with a file behind them than without.
CHARACTERS = {
    BACKGROUND: ["Greek/character01", "Greek/character01-b", "Greek-old/character01"],
    EVALUATION: ["Angelic/character01", "Angelic/character02"],
}


NAMES = (
    "images_background/Greek-old/character01",
    "images_background/Greek/character01",
    "images_background/Greek/character01-b",
    "images_evaluation/Angelic/character01",
    "images_evaluation/Angelic/character02",
)


FIRST = f"{BACKGROUND}/Greek/character01"
CACHE = omniglot_files._CACHE_NAME


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    return file.getvalue()


def drawings(seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for part, characters in CHARACTERS.items():
        for number, character in enumerate(characters):
            for drawing in range(20):
                coarse = np.where(rng.random((15, 15)) < 0.2, 0, 255).astype(np.uint8)
                name = f"{part}/{character}/{number + 1:04}_{drawing + 1:02}.png"
                files[name] = png(coarse.repeat(7, 0).repeat(7, 1))
    return files


def write_zips(root: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    root.mkdir(exist_ok=True)
    for part in COUNTS:
        with zipfile.ZipFile(root / f"{part}.zip", "w", compression) as archive:
            for name, content in reversed(files.items()):  # archives need not be sorted
                if part in name:
                    archive.writestr(name, content)
    return root


def write_folders(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def expected_images(files: dict[str, bytes]) -> torch.Tensor:
    images = []
    for name in NAMES:
        for file in sorted(file for file in files if file.startswith(f"{name}/")):
            gray = Image.open(io.BytesIO(files[file])).convert("L")
            images.append(255 - np.array(gray.resize((28, 28), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(images)).view(len(NAMES), 20, 28, 28)


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def zip_names(*more: str) -> list[str]:
    return sorted([f"{BACKGROUND}.zip", f"{EVALUATION}.zip", *more])
