"""tieredImageNet (Ren et al., ICLR 2018): 608 classes of ImageNet, split by their higher categories."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_meta.data.episodes import Split
from lightning_meta.data.vision.archives.published import PublishedImageDataModule, split_folders_in
from lightning_meta.data.vision.file_tree import FileTree
from lightning_meta.data.vision.layouts import Classes


class TieredImagenetDataModule(PublishedImageDataModule):
    """N-way K-shot tasks over tieredImageNet: 351 classes to train on, 97 to validate and 160 to test.

    There are 779,165 pictures, 16 GB as bytes of 84 × 84 pixels: pass ``cache_dir``, so that they are decoded once and
    mapped to memory.

    Args:
        root: The folders ``train/<class>/*.jpg`` and so on, an archive of them, or the folder around either. The
            pickled pictures of the authors are not read, as pickles can run any code.
        image_size: Height and width in pixels.
        **options: As in `ImageDataModule`, `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or the files are broken or incomplete.
        FileNotFoundError: If the files are not there.

    Example:
        >>> data = TieredImagenetDataModule("data/tiered_imagenet.tar", shots=5, cache_dir="data/cache")
    """

    title = "tieredImageNet"
    layout = "the folders train, val and test of one folder per class (such as n01530575/*.jpg), or an archive of them"
    class_counts: ClassVar[Mapping[Split, int]] = {"train": 351, "val": 97, "test": 160}

    def __init__(self, root: str | Path, image_size: int = 84, **options: Any) -> None:
        super().__init__(root, image_size=image_size, **options)

    def find_in(self, tree: FileTree, folder: str) -> Mapping[Split, Classes] | None:
        """Return the pictures of each split in a folder; None if they are not there."""
        return split_folders_in(tree, folder)
