"""The base of the data modules of pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_meta import arguments
from lightning_meta.data.episodes import Split
from lightning_meta.data.episodic import NWayDataModule
from lightning_meta.data.labelled import Examples
from lightning_meta.data.vision.archive_tree import open_tree
from lightning_meta.data.vision.augmentation import Augmentation, apply_each, crop_flip
from lightning_meta.data.vision.decoding import Channels
from lightning_meta.data.vision.file_tree import FileTree
from lightning_meta.data.vision.image_preparation import ImagePreparation, check_format
from lightning_meta.data.vision.layouts import Classes
from lightning_meta.data.vision.picture_examples import AugmentedPictures, PictureExamples
from lightning_meta.data.vision.pixel_store import PictureFormat, load_pixels, map_pixels

_CHUNK = 1024  # pictures whose pixel values are counted together


class ImageDataModule(NWayDataModule):
    """Base of the data modules of pictures, ``[tasks, examples, channels, height, width]``.

    A derived class implements `find`. Pictures are decoded once and kept as bytes.

    Args:
        root: The folder of the pictures, or an archive (zip or tar) of it, which is read without extraction.
        image_size: Height and width to which pictures are resized, regardless of their proportions, in pixels.
        channels: "rgb" or "grayscale".
        mean: The mean of each channel that is subtracted, where 0 is black and 1 is white; None: of the training
            pictures.
        std: The standard deviation of each channel by which is divided; None: of the training pictures.
        cache_dir: Where the decoded pictures are kept, in a file per split that is mapped to memory; a changed picture
            makes a new file, and the old one stays. None: they are decoded into memory in each run and process.
        augment: Random changes of training pictures. "none"; "crop_flip": shifts by up to an eighth of the size, and
            mirroring; in Python also a function of a picture, uint8 ``[channels, height, width]``, that returns one of
            the same shape and draws from torch's generator alone, such as one of ``torchvision.transforms.v2``.
        **options: As in `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or a picture, table or archive is broken.
        FileNotFoundError: If something is not where it should be.
    """

    keeps_arguments = True

    arguments_not_kept = ("augment",)

    with_archives: ClassVar[bool] = False
    """Whether archives in the root count as if they were extracted there."""

    def __init__(
        self,
        root: str | Path,
        image_size: int = 84,
        channels: Channels = "rgb",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        cache_dir: str | Path | None = None,
        augment: Augmentation | Callable[[Any], Any] = "none",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_format(image_size, channels, mean, std)
        if not callable(augment):
            arguments.check_choice("augment", augment, Augmentation)
        self.root = Path(root)
        self.picture_format = PictureFormat(image_size, channels)
        self.mean, self.std = mean, std
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.augment = augment
        # In the place of a function a text, which the check refuses where the checkpoint's arguments are used.
        lost = f"a function that the checkpoint does not keep, {augment!r}: pass it again"
        self.save_hyperparameters({"augment": lost if callable(augment) else augment})

    @abstractmethod
    def find(self, tree: FileTree) -> Mapping[Split, Classes]:
        """Return the names of the pictures of each class, for each split that there is."""

    def prepare_data(self) -> None:
        """Write the cache, if there is one; Lightning calls this in one process of each node."""
        if self.cache_dir is not None:
            self._load()

    def datasets(self) -> dict[Split, Examples]:
        """Return the pictures of each split, and set how further pictures are prepared."""
        loaded = self._load()
        train = loaded["train"][0]
        mean, std = _statistics(train) if self.mean is None or self.std is None else (self.mean, self.std)
        self.preparation = ImagePreparation(*self.picture_format, mean, std)
        datasets: dict[Split, Examples] = {}
        for split, (pixels, classes) in loaded.items():
            labels = np.repeat(np.arange(len(classes)), [len(names) for names in classes.values()])
            examples = PictureExamples(pixels, labels, tuple(classes), self.preparation.normalize)
            augments = split == "train" and self.augment != "none"
            datasets[split] = AugmentedPictures(examples, self._changes()) if augments else examples
        return datasets

    def _changes(self) -> Callable[[NDArray[np.uint8], NDArray[np.int64]], NDArray[np.uint8]]:
        return partial(apply_each, self.augment) if callable(self.augment) else crop_flip

    def _load(self) -> dict[Split, tuple[NDArray[np.uint8], Classes]]:
        loaded: dict[Split, tuple[NDArray[np.uint8], Classes]] = {}
        with open_tree(self.root, self.with_archives) as tree:
            for split, found in self.find(tree).items():
                classes = {name: found[name] for name in sorted(found)}
                names = [picture for name in classes for picture in sorted(classes[name])]
                if self.cache_dir is None:
                    pixels = load_pixels(tree, names, self.picture_format)
                else:
                    label = f"{self.root.name or 'pictures'}_{split}"
                    pixels = map_pixels(tree, names, self.picture_format, self.cache_dir, label)
                loaded[split] = pixels, classes
        return loaded


def _statistics(pixels: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel; exact, as they are made of whole numbers."""
    channels = pixels.shape[1]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(pixels), _CHUNK):
        for channel in range(channels):
            counts[channel] += np.bincount(pixels[start : start + _CHUNK, channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))
    if not std.all():
        raise ValueError("all training pictures are of one and the same color: pass mean and std, or other pictures")
    return mean.tolist(), std.tolist()
