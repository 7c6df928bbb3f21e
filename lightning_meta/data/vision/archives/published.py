"""The base of the data modules of published data sets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import ClassVar

from lightning_meta.data.episodes import Split
from lightning_meta.data.vision.file_tree import FileTree
from lightning_meta.data.vision.image_data_module import ImageDataModule
from lightning_meta.data.vision.layouts import SPLITS, Classes, split_folders

_PICKLES = (".pickle", ".pkl", ".npz")


class PublishedImageDataModule(ImageDataModule):
    """Base of the data modules of published data sets; a derived class says where their files are.

    The pictures may lie in the root or in one of its folders. Archives in the root are read as if they were extracted
    there; nothing is extracted.

    Raises:
        FileNotFoundError: If there are no files of a known layout.
        ValueError: If a split has other than the published number of classes.
    """

    with_archives = True

    title: ClassVar[str]
    """The data set's name in messages."""

    layout: ClassVar[str]
    """The known layout, in messages."""

    class_counts: ClassVar[Mapping[Split, int]]
    """The classes of each split."""

    @abstractmethod
    def find_in(self, tree: FileTree, folder: str) -> Mapping[Split, Classes] | None:
        """Return the pictures of each split in a folder; None if they are not there."""

    def find(self, tree: FileTree) -> Mapping[Split, Classes]:
        """Return the names of the pictures of each class of each split."""
        folders = ["", *tree.folders("")]
        found = next((found for folder in folders if (found := self.find_in(tree, folder)) is not None), None)
        if found is None:
            pickled = [name for folder in folders for name in tree.files(folder) if name.endswith(_PICKLES)]
            why = f"; {pickled[0]} is pickled, and not read, as pickles can run any code" if pickled else ""
            raise FileNotFoundError(
                f"root='{self.root}' has no files of {self.title} that are known{why}: give it {self.layout}"
            )
        for split in SPLITS:
            classes = len(found.get(split, ()))
            if classes != self.class_counts[split]:
                raise ValueError(
                    f"root='{self.root}' has {classes} classes in the {split} split, but {self.title} has "
                    f"{self.class_counts[split]}: extract or download it again, or use ImageFolderDataModule for data "
                    "of your own"
                )
        return found


def split_folders_in(tree: FileTree, folder: str) -> Mapping[Split, Classes] | None:
    """Return the pictures of ``train/<class>/*.png`` and so on in a folder; None if there is no ``train``."""
    return split_folders(tree, folder) if "train" in tree.folders(folder) else None


def inside(folder: str, name: str) -> str:
    """Return a name in a folder of a tree."""
    return PurePosixPath(folder, name).as_posix()
