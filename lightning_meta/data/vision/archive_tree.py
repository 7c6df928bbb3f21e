"""Files in zip and tar archives, read without extraction."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from lightning_meta.data.vision.file_tree import (
    FileTree,
    FolderTree,
    JoinedTree,
    checked_size,
    is_hidden,
    read_bounded,
)

_ZIP_ENDINGS = (".zip",)
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class ArchiveTree(FileTree):
    """The files in an archive.

    Names never reach the file system; an archive with members that would leave the folder of its extraction, or with
    links or devices, is refused all the same.

    Args:
        path: The archive.

    Raises:
        ValueError: If it is damaged or refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        status = path.stat()
        self._stamp = f"{path.name} {status.st_size} {status.st_mtime_ns}"
        self._members: dict[str, Any] = {}
        self._folders: dict[str, set[str]] = {}
        self._files: dict[str, set[str]] = {}
        with self._explained():
            self._open()
        try:
            with self._explained():
                members = list(self._listed())
            for name, member, is_file in members:
                self._add(name, member, is_file)
        except ValueError:
            self.close()
            raise

    @abstractmethod
    def _open(self) -> None:
        """Open the archive."""

    @abstractmethod
    def _listed(self) -> Iterator[tuple[str, Any, bool | None]]:
        """Yield each member's name, the member, and whether it is a file; None: neither file nor folder."""

    @abstractmethod
    def _opened(self, member: Any) -> IO[bytes]:
        """Open a member."""

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders in a folder."""
        return sorted(self._folders.get(folder, ()))

    def files(self, folder: str) -> list[str]:
        """Return the names of the files in a folder."""
        return sorted(self._files.get(folder, ()))

    def has_file(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self._members

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        with self._explained(), self._opened(self._members[name]) as file:
            content = read_bounded(file)
        return checked_size(content, self.shown(name))

    def stamp(self, name: str) -> str:
        """Return the archive's size and time of change."""
        return self._stamp

    def shown(self, name: str) -> str:
        """Return the name and the archive's."""
        return f"{name} in '{self.path}'" if name else f"'{self.path}'"

    def _add(self, name: str, member: Any, is_file: bool | None) -> None:
        path = PurePosixPath(name)
        if is_file is None or ".." in path.parts or path.is_absolute() or PureWindowsPath(name).drive:
            what = "is a link or device" if is_file is None else "lies outside"
            raise ValueError(
                f"'{self.path}' is refused: its member {name!r} {what}: extract the archive yourself if you trust it"
            )
        if any(map(is_hidden, path.parts)):
            return
        parts = path.parts if is_file is False else path.parts[:-1]
        for depth, folder in enumerate(parts):
            self._folders.setdefault("/".join(parts[:depth]), set()).add(folder)
        if is_file:
            self._files.setdefault("/".join(parts), set()).add(path.name)
            self._members["/".join(path.parts)] = member

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # zipfile and tarfile raise many kinds for damaged files
            reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")
            raise ValueError(f"'{self.path}' is no intact archive ({reason}): download it again") from error


class ZipTree(ArchiveTree):
    """The files in a zip archive."""

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()

    def position(self, name: str) -> Any:
        """Return where the member starts."""
        return self._members[name].header_offset

    def _open(self) -> None:
        self._archive = zipfile.ZipFile(self.path)

    def _listed(self) -> Iterator[tuple[str, Any, bool | None]]:
        for member in self._archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made by Unix
            regular = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            yield member.filename, member, (not member.is_dir()) if regular else None

    def _opened(self, member: Any) -> IO[bytes]:
        return self._archive.open(member)


class TarTree(ArchiveTree):
    """The files in a tar archive, compressed or not."""

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()

    def position(self, name: str) -> Any:
        """Return where the member starts; to go back in a compressed archive is to read it from its start."""
        return self._members[name].offset_data

    def _open(self) -> None:
        self._archive = tarfile.open(self.path)  # noqa: SIM115 (closed by `close`)

    def _listed(self) -> Iterator[tuple[str, Any, bool | None]]:
        for member in self._archive:
            yield member.name, member, True if member.isreg() else False if member.isdir() else None
        file: Any = self._archive.fileobj
        file.seek(self._archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes a cut inside a header for the end
            raise EOFError("its end is missing")

    def _opened(self, member: Any) -> IO[bytes]:
        file = self._archive.extractfile(member)
        assert file is not None  # only files are asked for
        return file


def open_tree(root: str | Path, with_archives: bool) -> FileTree:
    """Open a folder or an archive.

    Args:
        root: The folder, or the archive.
        with_archives: Whether the archives in the folder count as if they were extracted there; their files are taken
            rather than the folder's of the same name.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If an archive is damaged or refused.
    """
    path = Path(root)
    if path.is_file() and (archive := _archive_class(path)) is not None:
        return archive(path)
    folder = FolderTree(path)
    archives = [
        (cls, path / name) for name in folder.files("") if with_archives and (cls := _archive_class(path / name))
    ]
    return JoinedTree([folder, *(cls(file) for cls, file in archives)]) if archives else folder


def _archive_class(path: Path) -> type[ZipTree] | type[TarTree] | None:
    name = path.name.lower()
    return ZipTree if name.endswith(_ZIP_ENDINGS) else TarTree if name.endswith(_TAR_ENDINGS) else None
