"""Labelled pictures, stored as uint8 pixels and served as normalized floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta.data.labelled import AugmentedExamples, Examples

Normalize = Callable[[NDArray[np.uint8]], Tensor]
"""Turns pixels ``[pictures, channels, height, width]`` into the model's inputs."""


class PictureExamples(Examples):
    """Labelled pictures.

    Args:
        pixels: ``[pictures, channels, height, width]``, in memory or mapped to it.
        labels: The integer label of each picture, ``[pictures]``.
        class_names: The name of each label.
        normalize: Turns pixels into inputs.
    """

    def __init__(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str], normalize: Normalize
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.class_names = class_names
        self.normalize = normalize

    def inputs(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return pictures ``[numbers]``, ``[numbers, channels, height, width]``."""
        return self.normalize(self.pixels.take(numbers, axis=0))

    def __getstate__(self) -> dict[str, Any]:
        """Return the name of a mapped file in the place of its content, which workers map, too."""
        mapped = isinstance(self.pixels, np.memmap)
        return vars(self) | ({"pixels": str(self.pixels.filename)} if mapped else {})  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not isinstance(self.pixels, np.ndarray):
            self.pixels = np.load(self.pixels, mmap_mode="r", allow_pickle=False)


class AugmentedPictures(AugmentedExamples):
    """Labelled pictures with random changes.

    Args:
        examples: The pictures.
        augment: Takes pixels ``[pictures, channels, height, width]`` and seeds ``[pictures]``, and returns new pixels.
    """

    def __init__(
        self,
        examples: PictureExamples,
        augment: Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]],
    ) -> None:
        self.examples = examples
        self.augment = augment
        self.labels = examples.labels
        self.class_names = examples.class_names

    def inputs(self, numbers: NDArray[np.int64]) -> Tensor:
        """Return pictures ``[numbers]`` without changes."""
        return self.examples.inputs(numbers)

    def augmented(self, numbers: NDArray[np.int64], seeds: NDArray[np.int64]) -> Tensor:
        """Return pictures ``[numbers]``, changed as their seeds say."""
        return self.examples.normalize(self.augment(self.examples.pixels.take(numbers, axis=0), seeds))
