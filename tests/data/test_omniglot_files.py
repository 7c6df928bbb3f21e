import hashlib
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from lightning_meta.data import OmniglotDataModule
from lightning_meta.data.vision import omniglot_files
from lightning_meta.data.vision.omniglot import split_characters
from lightning_meta.data.vision.omniglot_files import OmniglotImages, load_omniglot

BACKGROUND, EVALUATION = "images_background", "images_evaluation"
COUNTS = {BACKGROUND: 3, EVALUATION: 2}
# With a hyphen, names sort otherwise as strings than as paths, and otherwise with a file behind them than without.
CHARACTERS = {
    BACKGROUND: ["Greek/character01", "Greek/character01-b", "Greek-old/character01"],
    EVALUATION: ["Angelic/character01", "Angelic/character02"],
}
NAMES = (
    "images_background/Greek-old/character01",
    "images_background/Greek/character01",
    "images_background/Greek/character01-b",
    "images_evaluation/Angelic/character01",
    "images_evaluation/Angelic/character02",
)
FIRST = f"{BACKGROUND}/Greek/character01"
CACHE = omniglot_files._CACHE_NAME

# Runs load_omniglot in another process, on small look-alikes, after a line on its standard input.
CHILD = f"""
import os, signal, sys, zlib
from pathlib import Path
from lightning_meta.data.vision import omniglot_files
omniglot_files._CHARACTERS = {COUNTS!r}
root, cache_dir = sys.argv[1:3]
print("ready", flush=True)
sys.stdin.readline()
"""


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    return file.getvalue()


def drawings(seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for part, characters in CHARACTERS.items():
        for number, character in enumerate(characters):
            for drawing in range(20):
                coarse = np.where(rng.random((15, 15)) < 0.2, 0, 255).astype(np.uint8)
                name = f"{part}/{character}/{number + 1:04}_{drawing + 1:02}.png"
                files[name] = png(coarse.repeat(7, 0).repeat(7, 1))
    return files


def write_zips(root: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    root.mkdir(exist_ok=True)
    for part in COUNTS:
        with zipfile.ZipFile(root / f"{part}.zip", "w", compression) as archive:
            for name, content in reversed(files.items()):  # archives need not be sorted
                if part in name:
                    archive.writestr(name, content)
    return root


def write_folders(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def expected_images(files: dict[str, bytes]) -> torch.Tensor:
    images = []
    for name in NAMES:
        for file in sorted(file for file in files if file.startswith(f"{name}/")):
            gray = Image.open(io.BytesIO(files[file])).convert("L")
            images.append(255 - np.array(gray.resize((28, 28), Image.Resampling.LANCZOS)))
    return torch.from_numpy(np.stack(images)).view(len(NAMES), 20, 28, 28)


def contents(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def zip_names(*more: str) -> list[str]:
    return sorted([f"{BACKGROUND}.zip", f"{EVALUATION}.zip", *more])


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setattr(omniglot_files, "_CHARACTERS", COUNTS)


@pytest.fixture
def files() -> dict[str, bytes]:
    return drawings()


@pytest.fixture
def root(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return write_zips(tmp_path / "root", files)


@pytest.fixture
def folders(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return write_folders(tmp_path / "folders", files)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The drawings decoded so far."""
    names: list[str] = []
    decode = omniglot_files._decode

    def counting(source: Path, name: str, content: bytes) -> np.ndarray:
        names.append(name)
        return decode(source, name, content)

    monkeypatch.setattr(omniglot_files, "_decode", counting)
    return names


class TestDecoding:
    def test_zips_equal_direct_computation(self, root, files):
        loaded = load_omniglot(root)
        assert loaded.names == NAMES
        assert loaded.images.dtype == torch.uint8
        assert torch.equal(loaded.images, expected_images(files))

    def test_folders_equal_zips(self, root, folders):
        from_zips, from_folders = load_omniglot(root), load_omniglot(folders)
        assert from_folders.names == from_zips.names
        assert torch.equal(from_folders.images, from_zips.images)

    def test_one_of_each(self, root, folders, files):
        (root / f"{EVALUATION}.zip").unlink()
        shutil.copytree(folders / EVALUATION, root / EVALUATION)
        assert torch.equal(load_omniglot(root).images, expected_images(files))

    def test_zip_goes_before_folder(self, root, files):
        write_folders(root, drawings(seed=1))
        assert torch.equal(load_omniglot(root).images, expected_images(files))

    def test_ink_is_255_on_paper_0(self, tmp_path, files):
        ink_left = np.full((105, 105), 255, np.uint8)
        ink_left[:, :52] = 0
        files[f"{FIRST}/0001_01.png"] = png(ink_left)
        image = load_omniglot(write_zips(tmp_path / "root", files)).images[NAMES.index(FIRST), 0]
        assert image[:, :10].eq(255).all()  # away from the edge, where resizing rings
        assert image[:, 18:].eq(0).all()

    @pytest.mark.parametrize("write", [write_zips, write_folders])
    def test_ignores_what_is_no_drawing(self, tmp_path, files, write):
        junk = [
            f"__MACOSX/{FIRST}/._0001_01.png",
            f"{FIRST}/._0001_01.png",
            f"{FIRST}/.DS_Store",
            f"{BACKGROUND}/.DS_Store",
            f"{BACKGROUND}/preview.png",
        ]
        root = write(tmp_path / "root", files | dict.fromkeys(junk, b"junk"))
        assert torch.equal(load_omniglot(root).images, expected_images(files))

    def test_zip_entries_reach_no_file(self, tmp_path, files):
        evil = [f"../../{BACKGROUND}.png", f"/{BACKGROUND}.png", f"{BACKGROUND}/../../../evil.png"]
        root = write_zips(tmp_path / "root", files | dict.fromkeys(evil, b"evil"))
        load_omniglot(root)
        assert contents(tmp_path) == ["root", *(f"root/{name}" for name in zip_names(CACHE))]


class TestCache:
    def test_second_load_decodes_nothing(self, root, decoded):
        first = load_omniglot(root)
        assert len(decoded) == 100
        second = load_omniglot(root)
        assert len(decoded) == 100
        assert second.names == first.names
        assert second.images.dtype == torch.uint8
        assert torch.equal(second.images, first.images)

    def test_folder_is_cached(self, folders, decoded):
        first, second = load_omniglot(folders), load_omniglot(folders)
        assert len(decoded) == 100
        assert torch.equal(second.images, first.images)

    def test_cached_images_can_be_written_to(self, root):
        load_omniglot(root)
        images = load_omniglot(root).images
        images.zero_()
        assert load_omniglot(root).images.any()

    def test_cache_dir_is_created_and_root_left_alone(self, root, tmp_path, decoded):
        cache_dir = tmp_path / "new" / "cache"
        load_omniglot(root, cache_dir)
        load_omniglot(str(root), str(cache_dir))
        assert len(decoded) == 100
        assert contents(root) == zip_names()
        assert contents(cache_dir) == [CACHE]

    def test_follows_the_umask(self, root):
        before = os.umask(0o027)
        try:
            load_omniglot(root)
        finally:
            os.umask(before)
        assert (root / CACHE).stat().st_mode & 0o777 == 0o640

    def test_changed_zip(self, root):
        load_omniglot(root)
        changed = drawings(seed=1)
        write_zips(root, changed)
        assert torch.equal(load_omniglot(root).images, expected_images(changed))

    def test_touched_zip(self, root, decoded):
        load_omniglot(root)
        os.utime(root / f"{EVALUATION}.zip", ns=(0, 1))
        load_omniglot(root)
        load_omniglot(root)
        assert len(decoded) == 200

    def test_zip_in_place_of_folder(self, folders):
        load_omniglot(folders)
        changed = drawings(seed=1)
        write_zips(folders, changed)
        assert torch.equal(load_omniglot(folders).images, expected_images(changed))

    def test_replaced_drawing_in_folder(self, folders, files):
        load_omniglot(folders)
        drawing = f"{FIRST}/0001_01.png"
        files[drawing] = png(np.zeros((105, 105), np.uint8))
        (folders / drawing).unlink()
        (folders / drawing).write_bytes(files[drawing])
        assert torch.equal(load_omniglot(folders).images, expected_images(files))

    def test_drawing_removed_from_folder(self, folders):
        load_omniglot(folders)
        (folders / FIRST / "0001_01.png").unlink()
        with pytest.raises(ValueError, match="19 of 20"):
            load_omniglot(folders)

    def test_other_format(self, root, decoded, monkeypatch):
        load_omniglot(root)
        monkeypatch.setattr(omniglot_files, "_CACHE_FORMAT", "omniglot 28x28 uint8, version 2")
        load_omniglot(root)
        assert len(decoded) == 200

    def _check_replaced(self, root: Path, broken: bytes, decoded: list[str], files: dict[str, bytes]) -> None:
        (root / CACHE).write_bytes(broken)
        before = len(decoded)
        loaded = load_omniglot(root)
        assert loaded.names == NAMES
        assert torch.equal(loaded.images, expected_images(files))
        assert len(decoded) == before + 100
        load_omniglot(root)
        assert len(decoded) == before + 100

    @pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99999])
    def test_truncated(self, root, decoded, files, kept):
        load_omniglot(root)
        good = (root / CACHE).read_bytes()
        self._check_replaced(root, good[: int(kept * len(good))], decoded, files)

    @pytest.mark.parametrize("position", [0, 127, 128, 131, 200, 5000, -1])
    def test_flipped_bit(self, root, decoded, files, position):
        load_omniglot(root)
        broken = bytearray((root / CACHE).read_bytes())
        broken[position] ^= 1
        self._check_replaced(root, bytes(broken), decoded, files)

    def test_appended(self, root, decoded, files):
        load_omniglot(root)
        self._check_replaced(root, (root / CACHE).read_bytes() + b"\0", decoded, files)

    def test_pickle_is_not_loaded(self, root, tmp_path, decoded, files):
        class Evil:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "evil",))

        self._check_replaced(root, pickle.dumps(Evil()), decoded, files)
        assert not (tmp_path / "evil").exists()

    def test_no_cache_of_broken_files(self, root):
        (root / f"{EVALUATION}.zip").write_bytes(b"no zip")
        with pytest.raises(ValueError, match="no intact zip"):
            load_omniglot(root)
        assert contents(root) == zip_names()


class TestInterruptedWrite:
    @pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError])
    def test_exception_leaves_nothing(self, root, files, monkeypatch, fault):
        def interrupted(*_):
            raise fault

        with monkeypatch.context() as patch:
            patch.setattr(omniglot_files.os, "replace", interrupted)
            with pytest.raises(fault):
                load_omniglot(root)
        assert contents(root) == zip_names()
        assert torch.equal(load_omniglot(root).images, expected_images(files))
        assert contents(root) == zip_names(CACHE)

    def test_full_disk_leaves_nothing(self, root, files, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(omniglot_files, "_seal", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            loaded = load_omniglot(root)
        assert torch.equal(loaded.images, expected_images(files))
        assert contents(root) == zip_names()

    def test_older_cache_survives(self, root, monkeypatch):
        load_omniglot(root)
        older = (root / CACHE).read_bytes()
        os.utime(root / f"{EVALUATION}.zip", ns=(0, 1))

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(omniglot_files.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_omniglot(root)
        assert (root / CACHE).read_bytes() == older

    @pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
    def test_killed_process(self, root, files, decoded):
        code = (
            CHILD + "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nomniglot_files.load_omniglot(root)"
        )
        killed = subprocess.run([sys.executable, "-c", code, root, root], input="go\n", text=True, capture_output=True)
        assert killed.returncode == -signal.SIGKILL
        leftover = sorted(set(contents(root)) - set(zip_names()))
        assert len(leftover) == 1
        assert leftover != [CACHE]
        assert torch.equal(load_omniglot(root).images, expected_images(files))
        assert len(decoded) == 100
        assert contents(root) == zip_names(CACHE)

    @pytest.mark.skipif(sys.platform == "win32", reason="no locks by which leftovers are known")
    def test_leftovers_go_and_files_in_use_stay(self, root, tmp_path):
        cache_dir = tmp_path / "cache"
        cache_dir.mkdir()
        stale = [cache_dir / f".{CACHE}.{'0' * 32}", root / f".{BACKGROUND}.zip.{'a' * 32}"]
        others = [cache_dir / f".{CACHE}.mine", cache_dir / f"{CACHE}.{'0' * 32}", root / f".other.zip.{'0' * 32}"]
        for path in [*stale, *others]:
            path.write_bytes(b"part")
        with omniglot_files._replacing(cache_dir / CACHE) as file:
            file.write(b"part")
            load_omniglot(root, cache_dir)
            load_omniglot(root, cache_dir)
            assert len(list(cache_dir.glob(f".{CACHE}.*"))) == 2
            file.write(b" and the rest")
        assert not any(path.exists() for path in stale)
        assert all(path.exists() for path in others)
        assert (cache_dir / CACHE).read_bytes() == b"part and the rest"

    @pytest.mark.skipif(sys.platform == "win32", reason="no locks by which leftovers are known")
    def test_file_taken_for_a_leftover_before_it_is_locked(self, root, files, monkeypatch):
        lock, calls = omniglot_files.fcntl.flock, []

        def late(handle, operation):
            if not calls:
                calls.append(handle)
                omniglot_files._remove_leftovers(root / CACHE)
            return lock(handle, operation)

        with monkeypatch.context() as patch:
            patch.setattr(omniglot_files.fcntl, "flock", late)
            load_omniglot(root)
        assert calls
        assert contents(root) == zip_names(CACHE)

    def test_without_locks(self, root, files, monkeypatch):
        monkeypatch.setattr(omniglot_files, "fcntl", None)
        assert torch.equal(load_omniglot(root).images, expected_images(files))
        assert contents(root) == zip_names(CACHE)


class TestUnwritable:
    def test_warns_and_loads(self, root, files, tmp_path, monkeypatch):
        real_open = Path.open

        def read_only(path: Path, mode: str = "r", *args, **kwargs):
            if set(mode) & set("wxa+"):
                raise PermissionError(13, "Permission denied", str(path))
            return real_open(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", read_only)
        with pytest.warns(UserWarning, match="Permission denied.*pass cache_dir, naming a writable folder") as caught:
            loaded = load_omniglot(root, tmp_path / "cache")
        assert len(caught) == 1
        assert str(tmp_path / "cache") in str(caught[0].message)
        assert torch.equal(loaded.images, expected_images(files))

    def test_cache_dir_cannot_be_made(self, root, files):
        with pytest.warns(UserWarning, match="pass cache_dir"):
            loaded = load_omniglot(root, root / f"{BACKGROUND}.zip" / "cache")
        assert torch.equal(loaded.images, expected_images(files))

    def test_folder_in_place_of_the_cache(self, root, files):
        (root / CACHE / "kept").mkdir(parents=True)
        with pytest.warns(UserWarning, match="pass cache_dir"):
            loaded = load_omniglot(root)
        assert torch.equal(loaded.images, expected_images(files))
        assert contents(root) == zip_names(CACHE, f"{CACHE}/kept")

    @pytest.mark.filterwarnings("default")
    def test_python_shows_the_warning_once(self, root, tmp_path):
        code = CHILD + 2 * "omniglot_files.load_omniglot(root, cache_dir)\n"  # two places that call
        arguments = [sys.executable, "-c", code, root, root / f"{BACKGROUND}.zip" / "cache"]
        shown = subprocess.run(arguments, input="go\n", text=True, capture_output=True, check=True)
        assert shown.stderr.count("pass cache_dir") == 1


def test_two_processes_at_once(root, tmp_path, files):
    # Each throws the cache away again and again, so that reads, writes and removals meet.
    code = CHILD + (
        "for _ in range(20):\n"
        f"    (Path(cache_dir) / {CACHE!r}).unlink(missing_ok=True)\n"
        "    loaded = omniglot_files.load_omniglot(root, cache_dir)\n"
        "    print(len(loaded.names), zlib.crc32(loaded.images.numpy().tobytes()))\n"
    )
    cache_dir = tmp_path / "cache"
    arguments = [sys.executable, "-W", "error", "-c", code, str(root), str(cache_dir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, **pipes) as one, subprocess.Popen(arguments, **pipes) as other:
        for process in (one, other):
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            process.stdin.write("go\n")
            process.stdin.flush()
        results = [process.communicate(timeout=120) for process in (one, other)]
    line = f"{len(NAMES)} {zlib.crc32(expected_images(files).numpy().tobytes())}\n"
    assert results == [(line * 20, "")] * 2
    assert set(contents(cache_dir)) <= {CACHE}


class TestErrors:
    def test_missing_root(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"root='.*nowhere' does not exist: .*pass download=True"):
            load_omniglot(tmp_path / "nowhere")

    @pytest.mark.parametrize("download", [False, True])
    def test_root_is_a_file(self, tmp_path, download):
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match=r"root='.*file' is a file: name the folder"):
            load_omniglot(tmp_path / "file", download=download)

    def test_neither_zip_nor_folder(self, root):
        (root / f"{EVALUATION}.zip").unlink()
        with pytest.raises(
            FileNotFoundError, match=r"root='.*root' holds neither images_evaluation\.zip nor .*pass download=True"
        ):
            load_omniglot(root)

    def test_folder_lacks_drawings(self, folders):
        (folders / FIRST / "0001_20.png").unlink()
        (folders / FIRST / "0001_19.png").unlink()
        with pytest.raises(
            ValueError,
            match=rf"{BACKGROUND}' has .* for 1 characters, first for {FIRST} \(18 of 20\): unzip .* remove the folder",
        ):
            load_omniglot(folders)

    @pytest.mark.parametrize("emptied", [True, False])
    def test_folder_lacks_a_character(self, folders, emptied):
        shutil.rmtree(folders / FIRST)
        if emptied:
            (folders / FIRST).mkdir()
        with pytest.raises(ValueError, match=r"has 2 characters instead of 3: unzip .* or remove the folder"):
            load_omniglot(folders)

    def test_empty_folder(self, folders):
        shutil.rmtree(folders / EVALUATION)
        (folders / EVALUATION).mkdir()
        with pytest.raises(ValueError, match=rf"{EVALUATION}' has 0 characters instead of 2"):
            load_omniglot(folders)

    def test_zip_lacks_a_character(self, tmp_path, files):
        some = {name: content for name, content in files.items() if not name.startswith(f"{FIRST}/")}
        root = write_zips(tmp_path / "root", some)
        with pytest.raises(
            ValueError, match=r"images_background\.zip' has 2 characters instead of 3: delete the archive"
        ):
            load_omniglot(root)

    def test_zip_has_a_character_too_many(self, tmp_path, files):
        more = {name.replace("Greek/", "More/"): content for name, content in files.items()}
        root = write_zips(tmp_path / "root", files | more)
        with pytest.raises(ValueError, match="has 5 characters instead of 3"):
            load_omniglot(root)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda content: b"<html>not found</html>", id="no zip"),
            pytest.param(lambda content: b"", id="empty"),
            pytest.param(lambda content: content[: len(content) // 2], id="truncated"),
            pytest.param(lambda content: content.replace(b"IDAT", b"IDAX", 1), id="wrong CRC"),
            pytest.param(
                lambda content: content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"),
                id="encrypted",
            ),
        ],
    )
    def test_corrupt_zip(self, tmp_path, files, damage: Callable[[bytes], bytes]):
        root = write_zips(tmp_path / "root", files, zipfile.ZIP_STORED)
        archive = root / f"{BACKGROUND}.zip"
        broken = damage(archive.read_bytes())
        assert broken != archive.read_bytes()
        archive.write_bytes(broken)
        with pytest.raises(
            ValueError,
            match=r"images_background\.zip' is no intact zip archive .*: delete the archive and download it again",
        ):
            load_omniglot(root)

    @pytest.mark.parametrize("content", [b"", b"no image", drawings()[f"{FIRST}/0001_01.png"][:80]])
    def test_undecodable_png_in_zip(self, tmp_path, files, content):
        files[f"{FIRST}/0001_07.png"] = content
        root = write_zips(tmp_path / "root", files)
        with pytest.raises(
            ValueError,
            match=rf"{FIRST}/0001_07\.png in '.*{BACKGROUND}\.zip' is no readable PNG .*: delete the archive",
        ):
            load_omniglot(root)

    def test_undecodable_png_in_folder(self, folders):
        (folders / FIRST / "0001_07.png").write_bytes(b"no image")
        with pytest.raises(
            ValueError,
            match=rf"{FIRST}/0001_07\.png in '.*{BACKGROUND}' is no readable PNG .*: unzip .* or remove the folder",
        ):
            load_omniglot(folders)

    def test_wrong_size(self, tmp_path, files):
        files[f"{FIRST}/0001_07.png"] = png(np.zeros((28, 105), np.uint8))
        root = write_zips(tmp_path / "root", files)
        with pytest.raises(
            ValueError, match=rf"{FIRST}/0001_07\.png in .* has \(105, 28\) pixels instead of Omniglot's \(105, 105\)"
        ):
            load_omniglot(root)

    @pytest.mark.parametrize("claimed", [None, 300])
    def test_zip_bomb(self, tmp_path, files, claimed):
        """Zeros that compress a thousandfold; the archive may claim that they are few."""
        name = f"{FIRST}/0001_01.png"
        files[name] = files[name] + bytes(20_000_000)
        root = write_zips(tmp_path / "root", files)
        archive = root / f"{BACKGROUND}.zip"
        if claimed is not None:
            entry = archive.read_bytes().replace(
                (len(files[name])).to_bytes(4, "little"), claimed.to_bytes(4, "little")
            )
            archive.write_bytes(entry)
        assert archive.stat().st_size < 200_000
        message = rf"{name} in .* has more than 65536 bytes" if claimed is None else "no intact zip archive"
        tracemalloc.start()
        with pytest.raises(ValueError, match=rf"{message}.*: delete the archive and download it again"):
            load_omniglot(root)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10_000_000

    def test_image_bomb(self, tmp_path, files, monkeypatch):
        files[f"{FIRST}/0001_07.png"] = png(np.zeros((6000, 6000), np.uint8))
        root = write_zips(tmp_path / "root", files)
        load = PngImagePlugin.PngImageFile.load

        def load_small(image):
            assert image.size == (105, 105)
            return load(image)

        monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load_small)
        with pytest.raises(ValueError, match=r"has \(6000, 6000\) pixels instead of Omniglot's \(105, 105\)"):
            load_omniglot(root)

    def test_large_file_in_folder(self, folders):
        with (folders / FIRST / "0001_07.png").open("r+b") as file:
            file.truncate(10**12)  # no more than its name on the disk
        with pytest.raises(ValueError, match=rf"{FIRST}/0001_07\.png in .* has more than 65536 bytes"):
            load_omniglot(folders)

    @pytest.mark.skipif(sys.platform == "win32", reason="no pipes among files")
    @pytest.mark.parametrize("what", ["pipe", "dangling", "folder", "loop", "device"])
    def test_what_is_no_file_in_folder(self, folders, what):
        path = folders / FIRST / "0001_07.png"
        path.unlink()
        make = {
            "pipe": lambda: os.mkfifo(path),
            "dangling": lambda: path.symlink_to("nowhere.png"),
            "folder": path.mkdir,
            "loop": lambda: path.symlink_to(path),
            "device": lambda: path.symlink_to("/dev/zero"),
        }
        make[what]()
        with pytest.raises(
            ValueError,
            match=rf"{FIRST}/0001_07\.png in '.*{BACKGROUND}' cannot be read .*: unzip .* or remove the folder",
        ):
            load_omniglot(folders)

    def test_link_to_a_drawing_is_one(self, folders, files):
        path = folders / FIRST / "0001_07.png"
        path.rename(folders / "elsewhere.png")
        path.symlink_to(folders / "elsewhere.png")
        assert torch.equal(load_omniglot(folders).images, expected_images(files))


class TestDownload:
    @pytest.fixture
    def published(self, tmp_path, files, monkeypatch) -> Path:
        folder = write_zips(tmp_path / "published", files)
        archives = {}
        for part in COUNTS:
            archive = folder / f"{part}.zip"
            archives[part] = (archive.as_uri(), hashlib.md5(archive.read_bytes()).hexdigest())
        monkeypatch.setattr(omniglot_files, "_ARCHIVES", archives)
        return folder

    def test_fetches_what_is_missing(self, published, tmp_path, files):
        root = tmp_path / "a" / "new"
        assert torch.equal(load_omniglot(root, download=True).images, expected_images(files))
        assert contents(root) == zip_names(CACHE)
        for part in COUNTS:
            assert (root / f"{part}.zip").read_bytes() == (published / f"{part}.zip").read_bytes()

    def test_fetches_one_part(self, published, root, files):
        (root / f"{EVALUATION}.zip").unlink()
        (published / f"{BACKGROUND}.zip").unlink()
        assert torch.equal(load_omniglot(root, download=True).images, expected_images(files))

    def test_leaves_what_is_there(self, published, tmp_path):
        changed = drawings(seed=1)
        root = write_zips(tmp_path / "mirror", changed)
        assert torch.equal(load_omniglot(root, download=True).images, expected_images(changed))

    def test_leaves_folders(self, published, folders, files):
        assert torch.equal(load_omniglot(folders, download=True).images, expected_images(files))
        assert not (folders / f"{BACKGROUND}.zip").exists()

    def test_wrong_md5(self, published, tmp_path):
        archive = published / f"{BACKGROUND}.zip"
        archive.write_bytes(archive.read_bytes()[:-1])
        root = tmp_path / "new"
        with pytest.raises(
            ValueError, match=r"images_background\.zip has the MD5 \w{32} instead of \w{32} and was not kept"
        ):
            load_omniglot(root, download=True)
        assert contents(root) == []

    def test_unreachable(self, published, tmp_path):
        (published / f"{EVALUATION}.zip").unlink()
        root = tmp_path / "new"
        with pytest.raises(
            OSError, match=r"images_evaluation\.zip could not be downloaded to root='.*new' .*: try again, or put"
        ):
            load_omniglot(root, download=True)
        assert contents(root) == [f"{BACKGROUND}.zip"]

    def test_nothing_is_fetched_unasked(self, published, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="pass download=True"):
            load_omniglot(tmp_path / "empty")
        assert contents(tmp_path / "empty") == []

    def test_published_archives(self):
        base = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
        assert omniglot_files._ARCHIVES[BACKGROUND] == (
            f"{base}/images_background.zip",
            "68d2efa1b9178cc56df9314c21c6e718",
        )
        assert omniglot_files._ARCHIVES[EVALUATION] == (
            f"{base}/images_evaluation.zip",
            "6b91aef0f799c5bb55b94e3f2daec811",
        )


def named(count=1623):
    names = tuple(f"images_{'background' if i < 964 else 'evaluation'}/a/character{i}" for i in range(count))
    return OmniglotImages(torch.zeros(count, 1, 1, 1, dtype=torch.uint8), names)


@pytest.mark.parametrize(("split", "sizes"), [("vinyals", (1100, 100, 423)), ("lake", (864, 100, 659))])
def test_splits_are_disjoint_complete_and_fixed(split, sizes):
    parts = split_characters(named(), split)
    assert tuple(len(parts[s]) for s in ("train", "val", "test")) == sizes
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1623))
    if split == "lake":
        assert min(parts["test"]) == 964
    # From the digests of the names, computed here on their own.
    order = sorted(range(1623), key=lambda i: hashlib.sha256(named().names[i].encode()).hexdigest())
    if split == "vinyals":
        assert parts["test"].tolist() == order[1200:]


@pytest.mark.slow
def test_real_omniglot(tmp_path, decoded):
    if "OMNIGLOT_ROOT" not in os.environ:
        pytest.skip("OMNIGLOT_ROOT does not name the folder with Omniglot")
    root = Path(os.environ["OMNIGLOT_ROOT"])
    first = load_omniglot(root, tmp_path)
    assert first.images.shape == (1623, 20, 28, 28)
    assert list(first.names) == sorted(set(first.names))
    for part, characters, alphabets in ((BACKGROUND, 964, 30), (EVALUATION, 659, 20)):
        names = [name for name in first.names if name.startswith(f"{part}/")]
        assert len(names) == characters
        assert len({name.split("/")[1] for name in names}) == alphabets
    background = root / f"{BACKGROUND}.zip"
    if background.exists():
        with zipfile.ZipFile(background) as archive:
            entries = sorted(entry for entry in archive.namelist() if entry.startswith(f"{first.names[500]}/"))
            gray = [Image.open(archive.open(entry)).convert("L") for entry in entries if entry.endswith(".png")]
        direct = np.stack([255 - np.array(image.resize((28, 28), Image.Resampling.LANCZOS)) for image in gray])
        assert torch.equal(first.images[500], torch.from_numpy(direct))
    second = load_omniglot(root, tmp_path)
    assert len(decoded) == 32_460
    assert second.names == first.names
    assert torch.equal(second.images, first.images)


@pytest.mark.slow
@pytest.mark.skipif("OMNIGLOT_ROOT" not in os.environ, reason="OMNIGLOT_ROOT does not name the folder of Omniglot")
def test_real_data_module(tmp_path):
    data = OmniglotDataModule(os.environ["OMNIGLOT_ROOT"], cache_dir=str(tmp_path), train_tasks=64)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x.shape == (16, 5, 1, 28, 28)
    assert len(data.episodes("train")._sizes) == 4400
    assert len(data.episodes("test")._sizes) == 423
    assert 0.05 < float(batch.support_x.mean()) < 0.15
    drawings = data.episodes("train").dataset.tensors[0]
    assert torch.equal(drawings[1100 * 20], torch.rot90(drawings[0], 1, (1, 2)))
