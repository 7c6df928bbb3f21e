"""miniImageNet (Vinyals et al., NeurIPS 2016): 100 classes of ImageNet, 600 pictures of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_meta.data.episodes import Split
from lightning_meta.data.vision.archives.published import PublishedImageDataModule, inside, split_folders_in
from lightning_meta.data.vision.file_tree import FileTree
from lightning_meta.data.vision.layouts import Classes, table_splits


class MiniImagenetDataModule(PublishedImageDataModule):
    """N-way K-shot tasks over miniImageNet: 64 classes to train on, 16 to validate and 20 to test.

    The split is that of Ravi and Larochelle (ICLR 2017), as Vinyals et al. did not publish theirs.

    Args:
        root: The folder with the tables ``train.csv``, ``val.csv`` and ``test.csv`` and the pictures in ``images/`` or
            ``images.zip``; or the folders ``train/<class>/*.jpg`` and so on, or archives of them; or an archive of
            either.
        image_size: Height and width in pixels.
        **options: As in `ImageDataModule`, `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or the files are broken or incomplete.
        FileNotFoundError: If the files are not there.

    Example:
        >>> data = MiniImagenetDataModule("data/mini_imagenet", ways=5, shots=1, cache_dir="data/cache")
    """

    title = "miniImageNet"
    layout = (
        "train.csv, val.csv and test.csv of Ravi and Larochelle with images/ or images.zip, or the folders train, val "
        "and test of one folder per class, or archives of them"
    )
    class_counts: ClassVar[Mapping[Split, int]] = {"train": 64, "val": 16, "test": 20}

    def __init__(self, root: str | Path, image_size: int = 84, **options: Any) -> None:
        super().__init__(root, image_size=image_size, **options)

    def find_in(self, tree: FileTree, folder: str) -> Mapping[Split, Classes] | None:
        """Return the pictures of each split in a folder; None if they are not there."""
        if tree.has_file(inside(folder, "train.csv")) and "images" in tree.folders(folder):
            return table_splits(tree, folder, inside(folder, "images"))
        return split_folders_in(tree, folder)
