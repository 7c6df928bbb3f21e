"""FC100 (Oreshkin, Rodríguez López, Lacoste, NeurIPS 2018): CIFAR-100, split by its superclasses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lightning_meta.data.episodes import Split
from lightning_meta.data.vision.archives.published import PublishedImageDataModule, split_folders_in
from lightning_meta.data.vision.file_tree import FileTree
from lightning_meta.data.vision.layouts import Classes


class FC100DataModule(PublishedImageDataModule):
    """N-way K-shot tasks over FC100: 60 classes to train on, 20 to validate and 20 to test.

    Args:
        root: The folders ``train/<class>/*.png`` and so on, an archive of them (one of all, or the folder with one for
            each split), or the folder around either. ``FC100_train.pickle`` and so on are not read, as pickles can run
            any code.
        image_size: Height and width in pixels; the pictures have 32.
        **options: As in `ImageDataModule`, `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or the files are broken or incomplete.
        FileNotFoundError: If the files are not there.

    Example:
        >>> data = FC100DataModule("data/FC100", ways=5, shots=5)
    """

    title = "FC100"
    layout = "the folders train, val and test of one folder per class, or archives of them"
    class_counts: ClassVar[Mapping[Split, int]] = {"train": 60, "val": 20, "test": 20}

    def __init__(self, root: str | Path, image_size: int = 32, **options: Any) -> None:
        super().__init__(root, image_size=image_size, **options)

    def find_in(self, tree: FileTree, folder: str) -> Mapping[Split, Classes] | None:
        """Return the pictures of each split in a folder; None if they are not there."""
        return split_folders_in(tree, folder)
