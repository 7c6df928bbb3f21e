"""Examples in a form that people can look at: pictures, texts, or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_meta.data.text.preparation import TextPreparation
from lightning_meta.data.vision.image_preparation import ImagePreparation

_LEAST_PIXELS = 8  # of a picture's height and width
_NUMBERS = 8  # of an example without picture or text


def shown_sets(support_x: Any, query_x: Any, preparation: Any = None) -> tuple[str, tuple[list[Any], list[Any]]]:
    """Return what kind of inputs a task has, and those of both sets as in `shown_inputs`, pictures scaled alike."""
    if isinstance(support_x, Tensor) and isinstance(query_x, Tensor) and support_x.shape[1:] == query_x.shape[1:]:
        kind, inputs = shown_inputs(torch.cat([support_x, query_x]), preparation)
        return kind, (inputs[: len(support_x)], inputs[len(support_x) :])
    (kind, support), (_, query) = (shown_inputs(x, preparation) for x in (support_x, query_x))
    return kind, (support, query)


def shown_inputs(x: Any, preparation: Any = None) -> tuple[str, list[Any]]:
    """Return what kind of inputs these are, and each in a form to show.

    Args:
        x: Inputs, ``[examples, ...]``.
        preparation: The data module's preparation, which turns inputs into pixels and ids into words again.

    Returns:
        "picture" and arrays ``[height, width, 3]`` of dtype uint8; "text" and texts; or "input" and a number each, or a
        text with the first numbers.
    """
    pictures = pictures_of(x, preparation)
    if pictures is not None:
        return "picture", list(pictures)
    if isinstance(x, Mapping) and "input_ids" in x and isinstance(preparation, TextPreparation):
        return "text", preparation.texts_of(dict(x))
    return "input", cells(x)


def pictures_of(x: Any, preparation: Any = None) -> NDArray[np.uint8] | None:
    """Return inputs as pictures ``[examples, height, width, 3]``, or None if they are none.

    Pictures are tensors ``[examples, channels, height, width]`` with one, three or four channels, of 8 pixels or more.
    An `ImagePreparation` is undone. Without one, values outside [0, 1] are scaled to it, all examples together.
    """
    if not isinstance(x, Tensor) or x.ndim != 4 or min(x.shape[-2:]) < _LEAST_PIXELS or len(x) == 0:
        return None
    if x.shape[1] not in (1, 3, 4):
        return None
    pixels = x.detach().cpu()
    if isinstance(preparation, ImagePreparation) and pixels.shape[1] == len(preparation.mean):
        pixels = torch.from_numpy(preparation.pixels_of(pixels))
    pixels = pixels[:, :3].expand(-1, 3, -1, -1).movedim(1, 3)
    if pixels.dtype == torch.uint8:
        return pixels.numpy()
    pixels = pixels.float().nan_to_num()
    low, high = min(0.0, float(pixels.min())), max(1.0, float(pixels.max()))
    if low < 0:  # standardized: their own range is all that is known
        low, high = float(pixels.min()), max(float(pixels.max()), float(pixels.min()) + 1e-9)
    return ((pixels - low) / (high - low) * 255).round().to(torch.uint8).numpy()


def cells(values: Any) -> list[Any]:
    """Return each example's values ``[examples, ...]``: a number, or a text with the first of them."""
    leaves = [leaf.detach().cpu() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    if len(leaves) == 1 and leaves[0][:1].numel() == 1:
        return leaves[0].flatten().float().tolist() if leaves[0].is_floating_point() else leaves[0].flatten().tolist()
    return [_numbers([leaf[row] for leaf in leaves]) for row in range(len(leaves[0]) if leaves else 0)]


def _numbers(parts: list[Tensor]) -> str:
    numbers = [number for part in parts for number in part.flatten()[: _NUMBERS + 1].tolist()]
    return ", ".join(f"{number:.4g}" for number in numbers[:_NUMBERS]) + (", ..." if len(numbers) > _NUMBERS else "")
