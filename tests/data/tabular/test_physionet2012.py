"""PhysioNet 2012, on made files in the publishers' layout."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_meta import PhysioNet2012DataModule

DESCRIPTORS = "Time,Parameter,Value\n00:00,RecordID,{0}\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n"
HOURS = (0, 3, 3, 9, 20, 24, 25, 31, 48)


def value(record: int, position: int) -> float:
    return 30 + record % 7 + position**2 / 10


def text(record: int, hours=HOURS) -> str:
    lines = [f"{hour:02}:{5 * i:02},HCT,{value(record, i)}" for i, hour in enumerate(hours)]
    return DESCRIPTORS.format(record) + "".join(f"{line}\n00:09,HR,73\n" for line in lines)


@pytest.fixture
def root(tmp_path):
    """Forty patients; 100 has three values in all, 101 four but three before hour 25, 139 none after hour 24."""
    few = {100: (1, 2, 3), 101: (1, 2, 3, 30), 139: (1, 2, 3, 4)}
    with zipfile.ZipFile(tmp_path / "set-a.zip", "w") as archive:
        for record in range(139, 99, -1):
            archive.writestr(f"set-a/{record}.txt", text(record, few.get(record, HOURS)))
    return tmp_path


def module(root: Path, **options) -> PhysioNet2012DataModule:
    counts = {"train_patients": 6, "val_patients": 4, "test_patients": 5}
    return PhysioNet2012DataModule(str(root), parameter="HCT", **(counts | options))


def test_patients_are_split_by_record_number(root):
    data = module(root)
    assert data.group_names("train") == ("101", "102", "103", "104", "105", "106")
    assert data.group_names("val") == ("130", "131", "132", "133")
    assert data.group_names("test") == ("134", "135", "136", "137", "138")
    assert data.num_tasks == {"train": 1600, "val": 4, "test": 5}
    everyone = module(root, train_patients=None)
    assert set(everyone.group_names("train")) == {str(record) for record in [*range(101, 130), 139]}


def test_a_task_is_hourly_means_before_and_after_the_split_hour(root):
    data = module(root)
    task = data.episodes("test")[1]
    preparation = data.preparation
    hour, scale = preparation.columns[0], preparation.targets
    np.testing.assert_allclose(task.support_x[:, 0] * hour.std + hour.mean, [0, 3, 9, 20, 24], atol=1e-4)
    np.testing.assert_allclose(task.query_x[:, 0] * hour.std + hour.mean, [25, 31], atol=1e-4)
    values = [value(135, i) for i in range(8)]
    expected = [values[0], (values[1] + values[2]) / 2, *values[3:]]
    found = torch.cat([task.support_y, task.query_y])[:, 0] * scale.std + scale.mean
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert module(root, split_hour=21).episodes("test")[1].support_y.shape == (4, 1)


def test_training_splits_anywhere_or_at_the_hour(root):
    batch = module(root).episodes("train").make(np.arange(60))
    assert set(batch.support_mask.sum(1).tolist()) == {1, 2, 3, 4, 5, 6}
    with pytest.warns(UserWarning, match="left out 1 of 15 groups"):
        batch = module(root, random_split_time=False).episodes("train").make(np.arange(60))
    assert batch.support_mask is None
    assert batch.support_x.shape == (60, 5, 1)


def test_the_extracted_folder_gives_the_same(root):
    expected = module(root).table()
    with zipfile.ZipFile(root / "set-a.zip") as archive:
        archive.extractall(root)
    (root / "set-a.zip").unlink()
    assert module(root).table().equals(expected)


def test_errors(root, tmp_path):
    with pytest.raises(ValueError, match="parameter='HTC' is not measured: did you mean 'HCT'"):
        PhysioNet2012DataModule(str(root), parameter="HTC")
    with pytest.raises(FileNotFoundError, match="neither .*set-a.zip.* nor the folder set-a"):
        PhysioNet2012DataModule(str(tmp_path / "nowhere")).setup("fit")
    with pytest.raises(ValueError, match="has no row with task, target and time"):
        PhysioNet2012DataModule(str(root), parameter="pH").setup("fit")
    folder = root / "set-a"
    folder.mkdir()
    (folder / "1.txt").write_text(text(1) + "9,HCT,high\n")
    with pytest.raises(ValueError, match="record 1 holds the line '9,HCT,high', which is not time,parameter,value"):
        module(root).setup("fit")
    (folder / "1.txt").unlink()
    folder.rmdir()
    (root / "set-a.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is broken"):
        module(root).setup("fit")


@pytest.mark.slow
@pytest.mark.skipif("PHYSIONET2012_ROOT" not in os.environ, reason="PHYSIONET2012_ROOT names no folder")
@pytest.mark.parametrize(("parameter", "mean", "std"), [("GCS", 11.82, 3.81), ("HCT", 30.06, 5.22)])
def test_the_publishers_files(parameter, mean, std):
    data = PhysioNet2012DataModule(os.environ["PHYSIONET2012_ROOT"], parameter)
    assert {split: len(data.group_names(split)) for split in data.num_tasks} == {"train": 100, "val": 500, "test": 500}
    assert (data.preparation.targets.mean, data.preparation.targets.std) == pytest.approx((mean, std), abs=0.01)
    batch = data.episodes("test").make(np.arange(500))
    assert int(batch.support_mask.sum(1).min()) >= 4
    assert int(batch.query_mask.sum(1).min()) >= 1
