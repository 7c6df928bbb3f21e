"""The cache of decoded drawings: what invalidates it, interrupted and simultaneous writes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_meta.data.vision import atomic_files, omniglot_files
from lightning_meta.data.vision.omniglot_files import load_omniglot
from tests.data.vision.look_alikes import (
    BACKGROUND,
    CACHE,
    COUNTS,
    EVALUATION,
    FIRST,
    NAMES,
    contents,
    drawings,
    expected_images,
    png,
    write_zips,
    zip_names,
)

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
            patch.setattr(atomic_files.os, "replace", interrupted)
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

        monkeypatch.setattr(atomic_files.os, "replace", interrupted)
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
        with atomic_files.replacing(cache_dir / CACHE) as file:
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
        lock, calls = atomic_files.fcntl.flock, []

        def late(handle, operation):
            if not calls:
                calls.append(handle)
                atomic_files.remove_leftovers(root / CACHE)
            return lock(handle, operation)

        with monkeypatch.context() as patch:
            patch.setattr(atomic_files.fcntl, "flock", late)
            load_omniglot(root)
        assert calls
        assert contents(root) == zip_names(CACHE)

    def test_without_locks(self, root, files, monkeypatch):
        monkeypatch.setattr(atomic_files, "fcntl", None)
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
