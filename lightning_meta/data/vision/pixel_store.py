"""All pixels of a list of pictures: decoded into memory, or once into a file that is mapped to memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from numpy.typing import NDArray

from lightning_meta.data.vision.atomic_files import remove_leftovers, replacing
from lightning_meta.data.vision.decoding import MODES, Channels, open_picture, pixels_of
from lightning_meta.data.vision.file_tree import FileTree

_FORMAT = "uint8 pixels, version 1"  # change it with anything that changes the cached bytes
_CHUNK = 128  # pictures read before the threads decode them


class PictureFormat(NamedTuple):
    """What pictures are decoded to.

    Attributes:
        image_size: Height and width in pixels.
        channels: "rgb" or "grayscale".
    """

    image_size: int
    channels: Channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a picture, ``(channels, height, width)``."""
        return (MODES[self.channels][1], self.image_size, self.image_size)


def load_pixels(tree: FileTree, names: Sequence[str], picture_format: PictureFormat) -> NDArray[np.uint8]:
    """Decode pictures into memory, ``[pictures, channels, height, width]``.

    Raises:
        ValueError: If a picture cannot be decoded; the message names it.
    """
    pixels = np.empty((len(names), *picture_format.shape), dtype=np.uint8)
    for number, picture in _decoded(tree, names, picture_format):
        pixels[number] = picture
    return pixels


def map_pixels(
    tree: FileTree, names: Sequence[str], picture_format: PictureFormat, folder: Path, label: str
) -> NDArray[np.uint8]:
    """Map a file of decoded pictures to memory, ``[pictures, channels, height, width]``; make it if there is none.

    The file's name holds a digest of the pictures' names, sizes and times and of the format, so that changed pictures
    get another file. It appears when it is complete; several processes may call this at once.

    Args:
        tree: Where the pictures are.
        names: Their names.
        picture_format: What they are decoded to.
        folder: Where the file is, created if missing.
        label: How the file's name starts.

    Raises:
        ValueError: If a picture cannot be decoded; nothing is kept then.
        OSError: If the file cannot be written.
    """
    path = folder / f"{label}_{_digest(tree, names, picture_format)}.npy"
    shape = (len(names), *picture_format.shape)
    pixels = _mapped(path, shape)
    if pixels is None:
        remove_leftovers(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                start, size = file.tell(), int(np.prod(picture_format.shape))
                for number, picture in _decoded(tree, names, picture_format):
                    file.seek(start + number * size)
                    file.write(picture.tobytes())
        except OSError as error:
            problem = f"cache_dir='{folder}': the decoded pictures could not be written ({error.strerror or error})"
            raise OSError(f"{problem}: name another folder, or pass cache_dir=None to keep them in memory") from error
        pixels = _mapped(path, shape)
        assert pixels is not None
    return pixels


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    """Return the file's content; None where there is no file, or a broken one."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _digest(tree: FileTree, names: Sequence[str], picture_format: PictureFormat) -> str:
    digest = hashlib.blake2b(
        f"{_FORMAT} {PIL.__version__} {picture_format} {tree.shown('')}\n".encode(), digest_size=16
    )
    for name in names:
        digest.update(f"{name} {tree.stamp(name)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _decoded(
    tree: FileTree, names: Sequence[str], picture_format: PictureFormat
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield each picture's number and pixels ``[channels, height, width]``, in the order of fastest reading.

    Files are read and their headers checked here; threads decode, as Pillow lets them run at the same time.
    """

    def decode(number: int) -> tuple[int, NDArray[np.uint8]]:
        return number, pixels_of(images.pop(number), tree.shown(names[number]), *picture_format)

    order = sorted(range(len(names)), key=lambda number: tree.position(names[number]))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        for start in range(0, len(order), _CHUNK):
            chunk = order[start : start + _CHUNK]
            images = {number: open_picture(tree.read(names[number]), tree.shown(names[number])) for number in chunk}
            yield from pool.map(decode, chunk)
