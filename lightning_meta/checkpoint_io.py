"""Reading checkpoints: only whole ones, only data, and with an error that says what is wrong with the file."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import get_filesystem
from torch.serialization import get_crc32_options

Source = str | Path | IO[bytes]


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's own way to read and write checkpoints, which refuses files that are not whole."""

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, location: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint; arguments, and errors besides, as in `read_checkpoint`.

        Raises:
            FileNotFoundError: If there is no such file.
        """
        return read_checkpoint(path, map_location, weights_only)


def read_checkpoint(source: Source, map_location: Any, weights_only: bool | None = None) -> dict[str, Any]:
    """Load a checkpoint after comparing all of it with its checksums.

    Args:
        source: A path, a URL, or a file open for reading bytes.
        map_location: As in `torch.load`.
        weights_only: Whether to refuse pickled code; None does, wherever the file comes from.

    Raises:
        RuntimeError: If the file was cut short or changed since it was written.
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
        fault = _fault(file)
    except Exception as error:  # zipfile has many kinds for damage
        raise RuntimeError(f"{name} cannot be read: it is damaged ({error}); take an earlier one") from error
    if fault is not None:
        raise RuntimeError(f"{name} cannot be read: {fault}; take an earlier one")
    file.seek(start)
    checkpoint = torch.load(file, map_location=map_location, weights_only=weights_only is not False)
    if not isinstance(checkpoint, dict):
        raise RuntimeError(f"{name} holds a {type(checkpoint).__name__} and is no checkpoint of a learner")
    return checkpoint


def _fault(file: IO[bytes]) -> str | None:
    if not zipfile.is_zipfile(file):  # the end of the archive is its directory
        return "it was cut short or is no checkpoint"
    with zipfile.ZipFile(file) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            return "it is compressed, as no checkpoint is"
        damaged = archive.testzip() if get_crc32_options() else None  # without checksums torch writes wrong ones
    return None if damaged is None else f"it is damaged, {damaged} differs from its checksum"
