"""Reads Omniglot from the publisher's own archives or folders; decodes once into a compact cache."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
# Archive: (address, MD5 as published). Only what is downloaded is compared: mirrors zip the same images anew.
_ARCHIVES = {
    "images_background": (f"{_URL}images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
    "images_evaluation": (f"{_URL}images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
}
_CHARACTERS = {"images_background": 964, "images_evaluation": 659}
_DRAWINGS = 20
_ORIGINAL_SIZE = (105, 105)
_SIZE = 28
_CACHE_NAME = "omniglot_28x28.npz"
_CACHE_VERSION = 1


class OmniglotImages(NamedTuple):
    """All of Omniglot.

    Attributes:
        images: ``[characters, drawings, 28, 28]``, uint8, paper 0 and ink 255.
        names: ``images_background/Alphabet/character01`` and so on, sorted; one per character.
    """

    images: Tensor
    names: tuple[str, ...]


def load_omniglot(root: str | Path, cache_dir: str | Path | None = None, download: bool = False) -> OmniglotImages:
    """Load Omniglot at 28 × 28 pixels, from the cache if it matches the files, else from the files.

    For each of the two parts the archive is read where there is one, else the extracted folder. Several
    processes may call this at once. Nothing is written outside ``root`` and ``cache_dir``.

    Args:
        root: The folder with ``images_background`` and ``images_evaluation``, zipped or extracted.
        cache_dir: Where the decoded images are kept (25 MB); None: in ``root``.
        download: Whether to download the parts that ``root`` lacks.

    Raises:
        FileNotFoundError: If ``root`` or a part is missing.
        ValueError: If an archive or image is broken, or a folder incomplete.
    """
    root = Path(root)
    if download:
        _download_missing(root)
    sources = [_source(root, part) for part in _CHARACTERS]
    fingerprint = "\n".join(_fingerprint(source) for source in sources)
    cache = Path(cache_dir or root) / _CACHE_NAME
    cached = _read_cache(cache, fingerprint)
    if cached is not None:
        return cached
    decoded = _decode_all(sources)
    try:
        _write_cache(cache, decoded, fingerprint)
    except OSError as error:
        warnings.warn(
            f"the decoded images could not be kept in {cache.parent} ({error}); they are decoded anew each time "
            "unless cache_dir names a writable folder",
            stacklevel=2,
        )
    return decoded


def _download_missing(root: Path) -> None:
    for part, (url, md5) in _ARCHIVES.items():
        target = root / f"{part}.zip"
        if target.exists() or (root / part).is_dir():
            continue
        root.mkdir(parents=True, exist_ok=True)
        with _replacing(target) as partial:
            with urllib.request.urlopen(url) as response, partial.open("wb") as file:
                while block := response.read(1 << 20):
                    file.write(block)
            found = hashlib.md5(partial.read_bytes(), usedforsecurity=False).hexdigest()
            if found != md5:
                raise ValueError(f"{url} has the MD5 {found} instead of {md5}: the download is broken, try again")


def _source(root: Path, part: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"root='{root}' is not a folder: name the one with {part}.zip, or pass download=True")
    archive, folder = root / f"{part}.zip", root / part
    if archive.is_file():
        return archive
    if folder.is_dir():
        return folder
    raise FileNotFoundError(f"root='{root}' holds neither {part}.zip nor the folder {part}: pass download=True")


def _fingerprint(source: Path) -> str:
    if source.is_file():
        stat = source.stat()
        return f"{source.name} {stat.st_size} {stat.st_mtime_ns}"
    folders = sorted(path for path in source.glob("*/*") if path.is_dir())
    return "\n".join(f"{source.name}/{p.parent.name}/{p.name} {p.stat().st_mtime_ns}" for p in folders)


def _decode_all(sources: list[Path]) -> OmniglotImages:
    characters: dict[str, NDArray[np.uint8]] = {}
    for source in sources:
        part = source.stem
        drawings: dict[str, list[NDArray[np.uint8]]] = {}
        for name, content in _png_files(source):
            character = "/".join(PurePosixPath(name).parts[:3])
            drawings.setdefault(character, []).append(_decode(source, name, content))
        _check_complete(source, part, drawings)
        characters.update({name: np.stack(images) for name, images in drawings.items()})
    names = tuple(sorted(characters))
    return OmniglotImages(torch.from_numpy(np.stack([characters[name] for name in names])), names)


def _png_files(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield ``(part/alphabet/character/drawing.png, content)``, sorted by name."""
    if source.is_dir():
        for path in sorted(source.glob("*/*/*.png")):
            yield f"{source.name}/{path.relative_to(source).as_posix()}", path.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as archive:
            # Read in memory, never extracted: an entry's name cannot reach a file.
            for name in sorted(archive.namelist()):
                parts = PurePosixPath(name).parts
                if len(parts) == 4 and parts[0] == source.stem and name.endswith(".png"):
                    yield name, archive.read(name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{source} is not a whole zip archive ({error}): delete it and download it again") from error


def _decode(source: Path, name: str, content: bytes) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != _ORIGINAL_SIZE:
                raise ValueError(f"{name} in {source} is {image.size} pixels instead of {_ORIGINAL_SIZE}: not Omniglot")
            small = image.convert("L").resize((_SIZE, _SIZE), Image.Resampling.LANCZOS)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{name} in {source} is no readable image ({error}): unpack or download it again") from error
    return 255 - np.asarray(small, dtype=np.uint8)


def _check_complete(source: Path, part: str, drawings: dict[str, list[Any]]) -> None:
    cure = "unpack or download it again"
    short = [name for name, images in drawings.items() if len(images) != _DRAWINGS]
    if short:
        raise ValueError(
            f"{source} is incomplete: {len(short)} characters lack drawings ({short[0]} has "
            f"{len(drawings[short[0]])} of {_DRAWINGS}): {cure}"
        )
    if len(drawings) != _CHARACTERS[part]:
        raise ValueError(f"{source} is incomplete: {len(drawings)} of {_CHARACTERS[part]} characters: {cure}")


def _read_cache(path: Path, fingerprint: str) -> OmniglotImages | None:
    """Return the cached images, or None where there is no cache, a broken one, or one of other files."""
    try:
        with np.load(path, allow_pickle=False) as cache:
            images, names = cache["images"], tuple(str(name) for name in cache["names"])
            good = int(cache["version"]) == _CACHE_VERSION and str(cache["fingerprint"]) == fingerprint
            good = good and str(cache["digest"]) == _digest(images)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    if not good or images.shape != (len(names), _DRAWINGS, _SIZE, _SIZE) or images.dtype != np.uint8:
        return None
    return OmniglotImages(torch.from_numpy(images), names)


def _write_cache(path: Path, decoded: OmniglotImages, fingerprint: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = decoded.images.numpy()
    with _replacing(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            images=images,
            names=np.array(decoded.names),
            version=np.array(_CACHE_VERSION),
            fingerprint=np.array(fingerprint),
            digest=np.array(_digest(images)),
        )


def _digest(images: NDArray[np.uint8]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(images).data, digest_size=16).hexdigest()


class _replacing:  # noqa: N801 (reads as a verb in a with statement)
    """A temporary file beside ``target`` that takes its place only when the block ends without an exception."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(prefix=f".{self._target.name}.", dir=self._target.parent)
        os.close(handle)
        self._partial = Path(name)
        return self._partial

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is None:
            self._partial.chmod(0o644)  # mkstemp keeps other users out; a data folder may be shared
            os.replace(self._partial, self._target)
        else:
            self._partial.unlink(missing_ok=True)
