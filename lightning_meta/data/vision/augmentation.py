"""Random changes of training pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.data.random_streams import splitmix64

Augmentation = Literal["none", "crop_flip"]


def crop_flip(pictures: NDArray[np.uint8], seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Shift each picture by up to an eighth of its size, with black beyond its edge, and mirror every second one.

    These are the padded random crop and the horizontal flip of He et al. (CVPR 2016), whose 4 pixels for pictures of
    32 are an eighth.

    Args:
        pictures: ``[pictures, channels, size, size]``.
        seeds: One for each picture, ``[pictures]``.

    Returns:
        New pictures of the same shape.
    """
    size = pictures.shape[-1]
    pad = size // 8
    draws = (splitmix64(seeds.astype(np.uint64), 3) >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [pictures, 3]
    shifts = np.floor(draws[:, :2] * (2 * pad + 1)).astype(np.int64)  # [pictures, 2]
    padded = np.pad(pictures, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    changed = np.empty_like(pictures, order="C")
    for number, (top, left) in enumerate(shifts.tolist()):
        crop = padded[number, :, top : top + size, left : left + size]
        changed[number] = crop[:, :, ::-1] if draws[number, 2] < 0.5 else crop
    return changed


def apply_each(transform: Callable[[Tensor], Any], pictures: NDArray[np.uint8], seeds: NDArray[np.int64]) -> Any:
    """Apply a function that draws from torch's generator to each picture, as torchvision's transforms do.

    Args:
        transform: Takes and returns a picture, uint8 ``[channels, size, size]``.
        pictures: ``[pictures, channels, size, size]``.
        seeds: What torch's generator starts from for each picture, ``[pictures]``; it is restored afterwards.

    Raises:
        ValueError: If what is returned has another shape or type.
    """
    changed = np.empty_like(pictures, order="C")
    with torch.random.fork_rng(devices=[]):
        for number, seed in enumerate(seeds.tolist()):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would change the generators of devices, too
            picture = transform(torch.from_numpy(pictures[number]))
            if not isinstance(picture, Tensor) or picture.dtype != torch.uint8 or picture.shape != pictures.shape[1:]:
                found = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, Tensor) else type(picture)
                raise ValueError(
                    f"augment={transform!r} returned {found} for a picture torch.uint8 {list(pictures.shape[1:])}, and "
                    "must return the same type and shape: leave out conversion to float, normalization and changes of "
                    "the size, which the data module does"
                )
            changed[number] = picture.numpy()
    return changed
