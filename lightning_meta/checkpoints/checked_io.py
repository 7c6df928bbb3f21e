"""Reading checkpoints: damaged files and pickled code are refused, with an error that names the fault."""

import struct
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from torch.serialization import get_crc32_options

from lightning_meta.checkpoints.content import check_types, fault_of_values

Source = str | Path | IO[bytes]


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's `TorchCheckpointIO`, except that it reads checkpoints by `read_checkpoint`."""

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; arguments and errors as in `read_checkpoint`."""
        return read_checkpoint(path, map_location, weights_only)


def read_checkpoint(source: Source, map_location: Any, weights_only: bool | None = None) -> dict[str, Any]:
    """Load a checkpoint after comparing all of it with its checksums.

    Arguments are as in `torch.load`; the source can be a URL, and ``weights_only=None`` means True for all sources.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If the file was cut short or changed since it was written, or its content would take far more
            memory than the file.
        ValueError: If an entry that this package reads has another type.
        UnpicklingError: If it holds code and ``weights_only`` is not False.
    """
    if str(source).startswith(("http://", "https://")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint"
            torch.hub.download_url_to_file(str(source), str(path))
            return read_checkpoint(path, map_location, weights_only)
    if not isinstance(source, str | Path):
        return _read(source, getattr(source, "name", "the file"), map_location, weights_only)
    with get_filesystem(source).open(str(source), "rb") as file:
        return _read(file, source, map_location, weights_only)


def _read(file: IO[bytes], name: Any, map_location: Any, weights_only: bool | None) -> dict[str, Any]:
    start = file.tell()
    try:
        fault = _fault_of_archive(file, weights_only)
    except Exception as error:  # zipfile has many kinds for damage
        fault = f"it is damaged ({error})"
    if fault is not None:
        raise RuntimeError(f"{name} cannot be read: {fault}; take an earlier one")
    file.seek(start)
    checkpoint = torch.load(file, map_location=map_location, weights_only=weights_only is not False)
    if not isinstance(checkpoint, dict):
        raise RuntimeError(f"{name} holds a {type(checkpoint).__name__} and is no checkpoint of a learner")
    fault = fault_of_values(checkpoint)
    if fault is not None:
        raise RuntimeError(f"{name} is refused: {fault}")
    check_types(checkpoint)
    return checkpoint


def _fault_of_archive(file: IO[bytes], weights_only: bool | None) -> str | None:
    if not _is_one_archive(file):
        return "it was cut short or is no checkpoint"
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
            return "it is compressed, as no checkpoint is"
        if len({m.filename.lower() for m in members}) < len(members):
            return "it holds two files of one name"
        damaged = archive.testzip() if get_crc32_options() else None  # with the option off, torch writes wrong ones
        if damaged is not None:
            return f"it is damaged, {damaged} differs from its checksum"
        pickles = (m for m in members if weights_only is not False and m.filename.endswith("data.pkl"))
        if any(b"cbuiltins\nbytearray\n" in archive.read(m) for m in pickles):  # of any size, in a few bytes
            return "it holds a bytearray, as no checkpoint of a learner does"
    return None


def _is_one_archive(file: IO[bytes]) -> bool:
    """Whether a file is a zip archive from its first byte to its last, so that every reader finds the same content.

    The record at an archive's end gives the place of its directory. With bytes before the archive, after it, or between
    directory and record, two readers can find different directories.
    """
    start = file.tell()
    magic, size = file.read(4), file.seek(0, 2) - start
    file.seek(start + max(0, size - 98))
    ending = file.read()
    record = ending[-22:]
    if magic != b"PK\3\4" or len(record) < 22 or record[:4] != b"PK\5\6" or record[20:] != b"\0\0":
        return False
    length, offset = struct.unpack("<II", record[12:20])
    place = size - 22
    if ending[-42:-38] == b"PK\6\7":  # the records of large archives, which torch always writes
        place = size - 98
        length, offset = struct.unpack("<QQ", ending[40:56])
        (named_place,) = struct.unpack("<Q", ending[64:72])
        if ending[:4] != b"PK\6\6" or named_place != place:
            return False
    return offset + length == place
