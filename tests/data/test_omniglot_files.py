"""Reading, checking and caching Omniglot, on small look-alikes of the publisher's files."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_meta.data import OmniglotDataModule, omniglot_files
from lightning_meta.data.omniglot import split_characters
from lightning_meta.data.omniglot_files import OmniglotImages, load_omniglot

PARTS = {"images_background": 3, "images_evaluation": 2}


def png(number: int, size=(105, 105)) -> bytes:
    pixels = np.random.default_rng(number).random(size) < 0.9  # True is paper
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


def drawings() -> dict[str, bytes]:
    """A look-alike of the data set: path inside the root, content."""
    files, number = {}, 0
    for part, characters in PARTS.items():
        for c in range(characters):
            for d in range(20):
                files[f"{part}/Alphabet_{c % 2}/character{c:02}/{c:04}_{d + 1:02}.png"] = png(number)
                number += 1
    return files


FILES = drawings()


def write_zips(root: Path, files: dict[str, bytes]) -> None:
    for part in PARTS:
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            archive.writestr(f"__MACOSX/{part}/Alphabet_0/character00/._0000_01.png", b"resource fork")
            archive.writestr("../../outside.png", b"must never be written")
            for name, content in files.items():
                if name.startswith(part):
                    archive.writestr(name, content)


def write_folders(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(omniglot_files, "_CHARACTERS", PARTS)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    write_zips(folder, FILES)
    return folder


@pytest.fixture
def decodes(monkeypatch):
    """Counts decoded drawings."""
    calls = []
    original = omniglot_files._decode

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(omniglot_files, "_decode", counted)
    return calls


def test_zips_and_folders_give_the_images(root, tmp_path):
    loaded = load_omniglot(root)
    assert loaded.images.shape == (5, 20, 28, 28)
    assert loaded.images.dtype == torch.uint8
    assert loaded.names[0] == "images_background/Alphabet_0/character00"
    assert list(loaded.names) == sorted(loaded.names)
    for c, name in enumerate(loaded.names):
        files = sorted(path for path in FILES if path.startswith(f"{name}/"))
        for d, path in enumerate(files):
            image = Image.open(io.BytesIO(FILES[path])).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
            assert np.array_equal(loaded.images[c, d].numpy(), 255 - np.asarray(image))
    folders = tmp_path / "folders"
    write_folders(folders, FILES)
    from_folders = load_omniglot(folders)
    assert torch.equal(from_folders.images, loaded.images)
    assert from_folders.names == loaded.names
    assert not list(tmp_path.rglob("outside.png"))


def test_the_second_use_reads_the_cache(root, tmp_path, decodes):
    first = load_omniglot(root, cache_dir=tmp_path / "new" / "cache")
    assert len(decodes) == 100
    second = load_omniglot(root, cache_dir=tmp_path / "new" / "cache")
    assert len(decodes) == 100
    assert torch.equal(first.images, second.images)
    assert first.names == second.names
    assert sorted(p.name for p in root.iterdir()) == ["images_background.zip", "images_evaluation.zip"]


def damage_by_truncation(cache: Path) -> None:
    cache.write_bytes(cache.read_bytes()[:-5000])


def damage_by_one_bit(cache: Path) -> None:
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 1
    cache.write_bytes(bytes(content))


def damage_by_emptying(cache: Path) -> None:
    cache.write_bytes(b"")


def damage_by_other_content(cache: Path) -> None:
    np.savez(cache, images=np.zeros((5, 20, 28, 28), np.uint8), names=np.array(["a"] * 5))


@pytest.mark.parametrize(
    "damage", [damage_by_truncation, damage_by_one_bit, damage_by_emptying, damage_by_other_content]
)
def test_a_damaged_cache_is_made_anew(root, damage, decodes):
    expected = load_omniglot(root)
    damage(root / "omniglot_28x28.npz")
    again = load_omniglot(root)
    assert len(decodes) == 200
    assert torch.equal(again.images, expected.images)
    load_omniglot(root)
    assert len(decodes) == 200


def test_changed_files_are_read_anew(root):
    before = load_omniglot(root)
    name = next(iter(FILES))
    write_zips(root, FILES | {name: png(999)})
    os.utime(root / "images_background.zip", ns=(1, 1))
    after = load_omniglot(root)
    assert not torch.equal(before.images[0, 0], after.images[0, 0])
    assert torch.equal(before.images[1:], after.images[1:])


def test_an_interrupted_write_leaves_nothing_behind(root, monkeypatch, decodes):
    def interrupted(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(omniglot_files.np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_omniglot(root)
    assert sorted(p.name for p in root.iterdir()) == ["images_background.zip", "images_evaluation.zip"]
    load_omniglot(root)
    assert len(decodes) == 200
    assert (root / "omniglot_28x28.npz").exists()


def _load_in_a_process(root, barrier, queue):
    omniglot_files._CHARACTERS = PARTS
    barrier.wait()
    queue.put(int(load_omniglot(root).images.long().sum()))


def test_two_processes_may_start_at_once(root):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_load_in_a_process, args=(root, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sums[0] == sums[1] == int(load_omniglot(root).images.long().sum())
    assert sorted(p.name for p in root.iterdir()) == [
        "images_background.zip",
        "images_evaluation.zip",
        "omniglot_28x28.npz",
    ]


def test_a_read_only_folder_is_decoded_in_memory(root, monkeypatch):
    def refused(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(omniglot_files.tempfile, "mkstemp", refused)
    with pytest.warns(UserWarning, match="unless cache_dir names a writable folder"):
        assert load_omniglot(root).images.shape[0] == 5


def test_missing_files(tmp_path, root):
    with pytest.raises(FileNotFoundError, match=r"root='.*nowhere' is not a folder: .*download=True"):
        load_omniglot(tmp_path / "nowhere")
    (root / "images_evaluation.zip").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither images_evaluation.zip nor the folder .*download=True"):
        load_omniglot(root)


def test_half_extracted_folders(tmp_path):
    write_folders(tmp_path, FILES)
    victim = next(tmp_path.rglob("*.png"))
    content = victim.read_bytes()
    victim.unlink()
    with pytest.raises(ValueError, match=r"incomplete: 1 characters lack drawings .* 19 of 20\): unpack"):
        load_omniglot(tmp_path)
    victim.write_bytes(content)
    for path in (tmp_path / "images_background/Alphabet_1/character01").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="incomplete: 2 of 3 characters"):
        load_omniglot(tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_broken_archives(root):
    whole = (root / "images_background.zip").read_bytes()
    (root / "images_background.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"images_background.zip is not a whole zip .*delete it and download it again"):
        load_omniglot(root)
    flipped = bytearray(whole)
    flipped[3000] ^= 255
    (root / "images_background.zip").write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match=r"images_background.zip"):
        load_omniglot(root)


def test_broken_images(tmp_path):
    name = next(iter(FILES))
    for content, message in [(b"no image", "no readable image"), (png(1, (64, 64)), "is .64, 64. pixels instead of")]:
        folder = tmp_path / message[:5]
        write_folders(folder, FILES | {name: content})
        with pytest.raises(ValueError, match=message):
            load_omniglot(folder)


def archives_at(folder: Path, md5=None):
    return {
        part: ((folder / f"{part}.zip").as_uri(), md5 or hashlib.md5((folder / f"{part}.zip").read_bytes()).hexdigest())
        for part in PARTS
    }


def test_download_checks_what_it_gets(root, tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot_files, "_ARCHIVES", archives_at(root))
    target = tmp_path / "fresh" / "omniglot"
    loaded = load_omniglot(target, download=True)
    assert torch.equal(loaded.images, load_omniglot(root).images)
    monkeypatch.setattr(omniglot_files, "_ARCHIVES", archives_at(root, md5="0" * 32))
    load_omniglot(target, download=True)  # What is there is not downloaded again.
    with pytest.raises(ValueError, match="the download is broken, try again"):
        load_omniglot(tmp_path / "other", download=True)
    assert list((tmp_path / "other").iterdir()) == []


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    def refused(*args):
        raise AssertionError("opened an address")

    monkeypatch.setattr(omniglot_files.urllib.request, "urlopen", refused)
    with pytest.raises(FileNotFoundError):
        load_omniglot(tmp_path)


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
@pytest.mark.skipif("OMNIGLOT_ROOT" not in os.environ, reason="OMNIGLOT_ROOT does not name the folder of Omniglot")
def test_the_real_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(omniglot_files, "_CHARACTERS", {"images_background": 964, "images_evaluation": 659})
    data = OmniglotDataModule(os.environ["OMNIGLOT_ROOT"], cache_dir=str(tmp_path), train_tasks=64)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.support_x.shape == (16, 5, 1, 28, 28)
    assert len(data.episodes("train")._sizes) == 4400
    assert len(data.episodes("test")._sizes) == 423
    assert 0.05 < float(batch.support_x.mean()) < 0.15
    turned = data._images["train"]
    assert torch.equal(turned[1100], torch.rot90(turned[0], 1, (2, 3)))
