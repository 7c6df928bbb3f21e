"""`ImageFolderDataModule`: N-way K-shot tasks over the user's pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_meta.data.episodes import Split
from lightning_meta.data.vision.file_tree import FileTree
from lightning_meta.data.vision.image_data_module import ImageDataModule
from lightning_meta.data.vision.layouts import Classes, split_folders, table_splits


class ImageFolderDataModule(ImageDataModule):
    """N-way K-shot tasks over pictures in folders, ``[tasks, examples, channels, height, width]``.

    Without ``splits_dir``, pictures are found as ``root/train/<class>/*.png``, ``root/val/...`` and
    ``root/test/...``. With it, three tables say which pictures a split has. The splits "val" and "test" may be absent.

    Args:
        root: The folder of the pictures, or an archive (zip or tar) of it, which is read without extraction.
        splits_dir: The folder with the tables ``train.csv``, ``val.csv`` and ``test.csv``, relative to ``root``, "."
            for ``root`` itself; the columns are ``filename`` and ``label``, as in those of Ravi and Larochelle
            (ICLR 2017) for miniImageNet.
        images_dir: The folder to which ``filename`` is relative, itself relative to ``root``.
        **options: As in `ImageDataModule`, `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or a picture or table is broken.
        FileNotFoundError: If something is not where it should be.

    Example:
        >>> data = ImageFolderDataModule("data/birds", ways=5, shots=5)  # the trainer loads the pictures
        >>> data = ImageFolderDataModule("data/mini_imagenet", splits_dir=".", cache_dir="data/cache")
    """

    def __init__(
        self,
        root: str | Path,
        splits_dir: str | None = None,
        images_dir: str = "images",
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.splits_dir = splits_dir
        self.images_dir = images_dir

    def find(self, tree: FileTree) -> Mapping[Split, Classes]:
        """Return the names of the pictures of each class, for each split that there is."""
        if self.splits_dir is None:
            return split_folders(tree)
        return table_splits(tree, self.splits_dir, self.images_dir)
