"""`FileTree`: the files of a folder or of archives, as one tree of names."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Self

LARGEST_FILE = 1 << 26
"""Bytes; no larger file is read, whatever size an archive claims for it."""


class FileTree(ABC):
    """Files under names with slashes, relative to a root.

    Used as a context, it closes its files at the end. Names that start with a dot, and ``__MACOSX``, are left out.
    """

    @abstractmethod
    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder ("": the root), sorted; none if there is no such folder."""

    @abstractmethod
    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder, sorted."""

    @abstractmethod
    def has_file(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            ValueError: If it cannot be read, or has more than `LARGEST_FILE` bytes.
        """

    @abstractmethod
    def stamp(self, name: str) -> str:
        """Return what changes when a file's content changes: sizes and times."""

    @abstractmethod
    def position(self, name: str) -> Any:
        """Return a key by which files are sorted for the fastest reading."""

    @abstractmethod
    def shown(self, name: str) -> str:
        """Return how messages name a file."""

    @abstractmethod
    def close(self) -> None:
        """Close what was opened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FolderTree(FileTree):
    """The files in a folder; links are followed.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If it does not exist.
        NotADirectoryError: If it is a file.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise FileNotFoundError(f"root='{self.root}' does not exist: name the folder of the pictures")
        if not self.root.is_dir():
            raise NotADirectoryError(f"root='{self.root}' is a file: name the folder of the pictures")

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder."""
        return self._names(folder, folders=True)

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        return self._names(folder, folders=False)

    def has_file(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        path = self.root / name
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for a writer
                raise OSError("it is no file")
            with path.open("rb") as file:
                content = read_bounded(file)
        except OSError as error:
            raise ValueError(
                f"'{path}' cannot be read ({error.strerror or error}): replace it, or leave it out"
            ) from error
        return checked_size(content, self.shown(name))

    def stamp(self, name: str) -> str:
        """Return a file's size and time of change."""
        try:
            status = (self.root / name).stat()
        except OSError:  # `read` raises the error
            return "unreadable"
        return f"{status.st_size} {status.st_mtime_ns}"

    def position(self, name: str) -> Any:
        """Return the same for all files."""
        return (-1, 0)

    def shown(self, name: str) -> str:
        """Return the path."""
        return f"'{self.root / name}'"

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _names(self, folder: str, folders: bool) -> list[str]:
        path = self.root / folder
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            return sorted(e.name for e in entries if not is_hidden(e.name) and _is_folder(e) is folders)


class JoinedTree(FileTree):
    """Several trees in one; a file that several have is taken from the last of them.

    Args:
        trees: The trees.
    """

    def __init__(self, trees: Sequence[FileTree]) -> None:
        self.trees = tuple(trees)

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder."""
        return sorted({name for tree in self.trees for name in tree.folders(folder)})

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        return sorted({name for tree in self.trees for name in tree.files(folder)})

    def has_file(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return any(tree.has_file(name) for tree in self.trees)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return self._of(name)[1].read(name)

    def stamp(self, name: str) -> str:
        """Return what changes when a file's content changes."""
        return self._of(name)[1].stamp(name)

    def position(self, name: str) -> Any:
        """Return the tree's number and the file's position there."""
        number, tree = self._of(name)
        return number, tree.position(name)

    def shown(self, name: str) -> str:
        """Return how the file's tree names it."""
        return self._of(name)[1].shown(name)

    def close(self) -> None:
        """Close all trees."""
        for tree in self.trees:
            tree.close()

    def _of(self, name: str) -> tuple[int, FileTree]:
        numbered = list(enumerate(self.trees))
        return next((item for item in reversed(numbered) if item[1].has_file(name)), numbered[0])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which `read` refuses as a file
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that systems add: .DS_Store, ._picture.png, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def read_bounded(file: IO[bytes]) -> bytes:
    """Read a file, whatever size it claims, but hardly more than `LARGEST_FILE`."""
    return file.read(LARGEST_FILE + 1)


def checked_size(content: bytes, shown: str) -> bytes:
    """Return what `read_bounded` returned unless the file is too large."""
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{shown} has more than {LARGEST_FILE} bytes, too many for a picture: leave it out")
    return content
