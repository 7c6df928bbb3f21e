"""CLINC150: small files like the publishers', and the real ones."""

import json
import os

import pytest

from lightning_meta import CLINC150DataModule
from tests.data.text.look_alikes import OPTIONS, write_clinc150


@pytest.mark.parametrize(("split_by", "intents"), [("intent", (18, 6, 6)), ("domain", (18, 6, 6))])
def test_splits(tmp_path, split_by, intents):
    write_clinc150(tmp_path)
    data = CLINC150DataModule(str(tmp_path), split_by=split_by, **OPTIONS)
    data.setup("fit")
    tables = data.texts()
    names = {split: set(rows["intent"]) for split, rows in tables.items()}
    assert tuple(len(names[split]) for split in ("train", "val", "test")) == intents
    assert len(set.union(*names.values())) == 30
    assert "oos" not in set.union(*names.values())
    assert all(set(rows.group_by("intent").len()["len"]) == {6} for rows in tables.values())  # of all three parts
    if split_by == "domain":
        domains = {split: {name.split("_")[1] for name in own} for split, own in names.items()}
        assert [len(domains[split]) for split in ("train", "val", "test")] == [6, 2, 2]
        assert len(set.union(*domains.values())) == 10
    assert data.episodes("test")[0].support_x["input_ids"].shape == (2, data.preparation.max_length)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_full.json", "{", "data_full.json in .* is no JSON file"),
        ("data_full.json", "[]", "data_full.json in .* is not the publishers'"),
        ("data_full.json", json.dumps({"train": [["text"]]}), "is not the publishers'"),
        ("domains.json", json.dumps({"bank": "x"}), "domains.json in .* is not the publishers'"),
        ("domains.json", "{}", "names no domain of the intent 'intent_0_0'"),
    ],
)
def test_other_files(tmp_path, name, content, message):
    write_clinc150(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        CLINC150DataModule(str(tmp_path)).setup("fit")


def test_missing_files_and_unknown_splits(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no domains.json: put data_full.json and"):
        CLINC150DataModule(str(tmp_path)).setup("fit")
    with pytest.raises(ValueError, match="split_by='intents' is not one of"):
        CLINC150DataModule(str(tmp_path), split_by="intents")


@pytest.mark.slow
@pytest.mark.skipif("CLINC150_ROOT" not in os.environ, reason="CLINC150_ROOT does not name the folder of CLINC150")
@pytest.mark.parametrize("split_by", ["intent", "domain"])
def test_real_data(split_by):
    data = CLINC150DataModule(os.environ["CLINC150_ROOT"], split_by=split_by)
    data.setup("fit")
    assert [len(data.episodes(split)._sizes) for split in ("train", "val", "test")] == [90, 30, 30]
    assert all(set(data.episodes(split)._sizes) == {150} for split in ("train", "val", "test"))
    assert 15 <= data.preparation.max_length <= 28
