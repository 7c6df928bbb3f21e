"""Small files in the form in which learn2learn keeps mini-ImageNet."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np


def write_mini_imagenet(folder: Path, examples: int) -> None:
    """Write pictures that tell their split by all values, and their class by the first pixel."""
    for number, (mode, classes) in enumerate({"train": 6, "validation": 5, "test": 5}.items()):
        pictures = np.full((classes * examples, 84, 84, 3), number, dtype=np.uint8)
        pictures[:, 0, 0, 0] = np.arange(classes * examples) // examples
        content = {
            "image_data": pictures,
            "class_dict": {f"n{c}": list(range(examples * c, examples * (c + 1))) for c in range(classes)},
        }
        (folder / f"mini-imagenet-cache-{mode}.pkl").write_bytes(pickle.dumps(content))
