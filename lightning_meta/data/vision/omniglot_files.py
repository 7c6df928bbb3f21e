"""Reads Omniglot from the publisher's own archives or folders; decodes once into a compact cache."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import re
import stat
import urllib.request
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_meta.data.vision.atomic_files import remove_leftovers, replacing

IMAGE_SIZE = 28
"""Height and width of the images in pixels."""

_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
# The address and the published MD5, which only downloads are compared with: mirrors zip the same images differently.
_ARCHIVES = {
    "images_background": (f"{_URL}images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
    "images_evaluation": (f"{_URL}images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
}
_CHARACTERS = {"images_background": 964, "images_evaluation": 659}
_DRAWINGS = 20
_ORIGINAL_SIZE = (105, 105)
_LARGEST_FILE = 1 << 16  # bytes; a drawing has about 200, and 44,100 without compression and with four channels
_TIMEOUT_SECONDS = 60.0
_CACHE_NAME = "omniglot_28x28.cache"
_CACHE_FORMAT = "omniglot 28x28 uint8, version 1"  # change it with anything that changes the cached bytes


class OmniglotImages(NamedTuple):
    """All of Omniglot.

    Attributes:
        images: ``[characters, drawings, 28, 28]``, uint8, paper 0 and ink 255.
        names: ``images_background/Alphabet/character01`` and so on, sorted; one per character.
    """

    images: Tensor
    names: tuple[str, ...]


def load_omniglot(root: str | Path, cache_dir: str | Path | None = None, download: bool = False) -> OmniglotImages:
    """Load Omniglot at 28 × 28 pixels, ``[1623, 20, 28, 28]``, from the cache if it matches the files, else from these.

    For each of the two parts the archive is read where there is one, else the extracted folder. Several
    processes may call this at once. Nothing is written outside ``root`` and ``cache_dir``. A cache that is
    damaged, or made from other files, is replaced; one that cannot be written is left out, with a warning.
    A drawing overwritten in place inside an extracted folder goes unnoticed: delete the cache after such edits.

    Args:
        root: The folder with ``images_background`` and ``images_evaluation``, zipped or extracted.
        cache_dir: Where the decoded images are kept (25 MB), created if missing; None: in ``root``.
        download: Whether to download the parts that ``root`` lacks (14 MB).

    Raises:
        FileNotFoundError: If ``root`` or a part is missing.
        NotADirectoryError: If ``root`` is a file.
        ValueError: If an archive, image or download is broken, or a part incomplete.
        OSError: If a download fails.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise NotADirectoryError(f"root='{root}' is a file: name the folder that holds the archives")
    if not root.exists() and not download:
        raise FileNotFoundError(f"root='{root}' does not exist: name the folder of the archives, or pass download=True")
    cache = (root if cache_dir is None else Path(cache_dir)) / _CACHE_NAME
    for target in (cache, *(root / f"{part}.zip" for part in _ARCHIVES)):
        remove_leftovers(target)
    sources = [_source(root, part, download) for part in _CHARACTERS]
    # Taken before decoding: if the files change meanwhile, the cache does not match them and is made again.
    fingerprint = "\n".join(_fingerprint(source) for source in sources)
    cached = _read_cache(cache, fingerprint)
    if cached is not None:
        return cached
    decoded = _decode_all(sources)
    try:
        _write_cache(cache, decoded, fingerprint)
    except OSError as error:
        # Attributed to this line and the same each time, so that Python shows it once however many places call.
        warnings.warn(
            f"the decoded images could not be kept in '{cache.parent}' ({error.strerror or error}), and every process "
            "decodes them again: pass cache_dir, naming a writable folder",
            stacklevel=1,
        )
    return decoded


def _source(root: Path, part: str, download: bool) -> Path:
    """Return the archive of a part where there is one, else its folder, else the downloaded archive."""
    archive, folder = root / f"{part}.zip", root / part
    if folder.is_dir() and not archive.is_file():
        return folder
    if not archive.is_file():
        if not download:
            raise FileNotFoundError(
                f"root='{root}' holds neither {archive.name} nor the folder {part}: name another folder, or pass "
                "download=True"
            )
        _download(*_ARCHIVES[part], archive)
    return archive


def _download(url: str, md5: str, target: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    cure = f"try again, or put {target.name} into '{target.parent}' yourself"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file, urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            while block := response.read(1 << 20):
                digest.update(block)
                file.write(block)
            if digest.hexdigest() != md5:
                raise ValueError(
                    f"download=True: {url} has the MD5 {digest.hexdigest()} instead of {md5} and was not kept: {cure}"
                )
    except (OSError, http.client.HTTPException) as error:
        message = f"download=True: {url} could not be downloaded to root='{target.parent}' ({error}): {cure}"
        raise OSError(message) from error


def _fingerprint(source: Path) -> str:
    if source.is_file():
        status = source.stat()
        return f"{source.name} {status.st_size} {status.st_mtime_ns}"
    # A folder's time changes when a drawing is added or removed. To read the time of every drawing would take as long
    # as decoding on a network file system.
    folders = sorted(path for path in source.glob("*/*") if path.is_dir())
    return "\n".join(f"{source.name}/{p.parent.name}/{p.name} {p.stat().st_mtime_ns}" for p in folders)


def _decode_all(sources: list[Path]) -> OmniglotImages:
    drawings: dict[str, list[NDArray[np.uint8]]] = {}
    for source in sources:
        for name, content in _read_drawings(source):
            drawings.setdefault(_character(name), []).append(_decode(source, name, content))
    names = tuple(sorted(drawings))
    return OmniglotImages(torch.from_numpy(np.array([drawings[name] for name in names])), names)


def _read_drawings(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each ``part/alphabet/character/drawing.png``, sorted, and its content; one at a time, to bound memory."""
    found, read = _open_archive(source) if source.is_file() else _open_folder(source)
    # macOS adds .DS_Store, __MACOSX/... and ._copies of files to folders and archives.
    drawing = re.compile(rf"{source.stem}/[^/]*/[^/]*/(?!\.)[^/]*\.png")
    names = sorted({name for name in found if drawing.fullmatch(name)})
    _check_complete(source, names)
    for name in names:
        content = read(name)
        if len(content) > _LARGEST_FILE:
            raise _broken(source, f"{name} in '{source}' has more than {_LARGEST_FILE} bytes, too many for a drawing")
        yield name, content


def _open_archive(source: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Return the names in a zip archive, and a function that reads one; in memory, so that no name reaches a file."""
    content, problem = io.BytesIO(source.read_bytes()), f"'{source}' is no intact zip archive"
    with _explained(problem, source):
        archive = zipfile.ZipFile(content)

    def read(name: str) -> bytes:
        with _explained(problem, source), archive.open(name) as file:
            return file.read(_LARGEST_FILE + 1)  # whatever size the archive claims

    return archive.namelist(), read


def _open_folder(source: Path) -> tuple[list[str], Callable[[str], bytes]]:
    """Return the names in an extracted folder, and a function that reads one."""

    def read(name: str) -> bytes:
        path = source.parent / name
        with _explained(f"{name} in '{source}' cannot be read", source):
            if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would wait for a writer
                raise OSError("not a file")
            with path.open("rb") as file:
                return file.read(_LARGEST_FILE + 1)

    return [path.relative_to(source.parent).as_posix() for path in source.glob("*/*/*.png")], read


def _character(name: str) -> str:
    return name.rpartition("/")[0]


def _check_complete(source: Path, names: Collection[str]) -> None:
    drawings = Counter(map(_character, names))
    wrong = [character for character, count in drawings.items() if count != _DRAWINGS]
    if wrong:
        first = f"first for {wrong[0]} ({drawings[wrong[0]]} of {_DRAWINGS})"
        raise _broken(source, f"'{source}' has other than {_DRAWINGS} drawings for {len(wrong)} characters, {first}")
    expected = _CHARACTERS[source.stem]
    if len(drawings) != expected:
        raise _broken(source, f"'{source}' has {len(drawings)} characters instead of {expected}")


def _decode(source: Path, name: str, content: bytes) -> NDArray[np.uint8]:
    with (
        _explained(f"{name} in '{source}' is no readable PNG", source),
        Image.open(io.BytesIO(content), formats=["PNG"]) as image,
    ):
        size = image.size
        gray = image.convert("L") if size == _ORIGINAL_SIZE else None  # nothing larger is decoded
    if gray is None:
        raise _broken(source, f"{name} in '{source}' has {size} pixels instead of Omniglot's {_ORIGINAL_SIZE}")
    return 255 - np.asarray(gray.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS), dtype=np.uint8)


@contextmanager
def _explained(problem: str, source: Path) -> Iterator[None]:
    """Raise a ValueError with the cure for any exception: zipfile and Pillow raise many kinds for damaged files."""
    try:
        yield
    except Exception as error:
        raise _broken(source, f"{problem} ({getattr(error, 'strerror', None) or error})") from error


def _broken(source: Path, problem: str) -> ValueError:
    archive, folder = "delete the archive and download it again", "unzip the archive again, or remove the folder and"
    cure = f"{archive} (download=True)" if source.is_file() else f"{folder} pass download=True"
    return ValueError(f"{problem}: {cure}")


def _read_cache(path: Path, fingerprint: str) -> OmniglotImages | None:
    """Return the cached images, or None where there is no cache, a broken one, or one of other files."""
    try:
        stored = bytearray(path.read_bytes())  # not bytes: the tensor shares this memory and must be writable
    except OSError:
        return None
    seal, _, content = stored.partition(b"\n")
    if seal != _seal(fingerprint, content):
        return None
    # The seal covers every byte, so what follows reads only what _write_cache wrote.
    names, _, pixels = content.partition(b"\n")
    characters = tuple(json.loads(names))
    images = torch.frombuffer(pixels, dtype=torch.uint8).reshape(len(characters), _DRAWINGS, IMAGE_SIZE, IMAGE_SIZE)
    return OmniglotImages(images, characters)


def _write_cache(path: Path, decoded: OmniglotImages, fingerprint: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(decoded.names).encode() + b"\n" + decoded.images.numpy().tobytes()
    with replacing(path) as file:
        file.write(_seal(fingerprint, content) + b"\n" + content)


def _seal(fingerprint: str, content: bytes | bytearray) -> bytes:
    """Return a digest of the content, the format and the sources' fingerprint: one comparison checks all three."""
    digest = hashlib.blake2b(f"{_CACHE_FORMAT}\n{fingerprint}\n".encode())
    digest.update(content)
    return digest.hexdigest().encode()
