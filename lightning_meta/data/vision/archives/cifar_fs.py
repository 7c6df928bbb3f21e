"""CIFAR-FS (Bertinetto, Henriques, Torr, Vedaldi, ICLR 2019): the 100 classes of CIFAR-100, 600 pictures of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_meta.data.episodes import Split
from lightning_meta.data.vision.archives.published import PublishedImageDataModule, inside, split_folders_in
from lightning_meta.data.vision.file_tree import FileTree
from lightning_meta.data.vision.layouts import SPLITS, Classes, class_folders


class CIFARFSDataModule(PublishedImageDataModule):
    """N-way K-shot tasks over CIFAR-FS: 64 classes to train on, 16 to validate and 20 to test.

    Args:
        root: The authors' ``cifar100.zip`` with ``data/<class>/*.png`` and ``splits/bertinetto/train.txt`` and so on,
            or the folder that has it or what was extracted from it; or the folders ``train/<class>/*.png`` and so on.
        image_size: Height and width in pixels; the pictures have 32.
        **options: As in `ImageDataModule`, `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or the files are broken or incomplete.
        FileNotFoundError: If the files are not there.

    Example:
        >>> data = CIFARFSDataModule("data/cifar_fs", ways=5, shots=1, augment="crop_flip")
    """

    title = "CIFAR-FS"
    layout = "cifar100.zip of Bertinetto et al., or the folders train, val and test of one folder per class"
    class_counts: ClassVar[Mapping[Split, int]] = {"train": 64, "val": 16, "test": 20}

    def __init__(self, root: str | Path, image_size: int = 32, **options: Any) -> None:
        super().__init__(root, image_size=image_size, **options)

    def find_in(self, tree: FileTree, folder: str) -> Mapping[Split, Classes] | None:
        """Return the pictures of each split in a folder; None if they are not there."""
        lists = {split: inside(folder, f"splits/bertinetto/{split}.txt") for split in SPLITS}
        if not all(map(tree.has_file, lists.values())):
            return split_folders_in(tree, folder)
        data = inside(folder, "data")
        return {split: class_folders(tree, data, tree.read(name).decode().split()) for split, name in lists.items()}
