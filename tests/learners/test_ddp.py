from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_meta import SinusoidDataModule
from lightning_meta.data import episodes
from tests.ddp_script import ENTRIES, LEARNERS, STEPS, TASKS_PER_STEP
from tests.registry import named_cases

TESTS = Path(__file__).parents[1]
# Behind what the path already has: that may be another copy of the package.
PATH = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS.parent)]))
# What has most to pass between processes: averages that are kept, buffers, draws, frozen and shared parameters.
QUICK = {"MAML", "head", "Reptile", "ABML", "SimpleShot"}
# Their random numbers differ from process to process, as they should.
RANDOM = {name for name, entry in ENTRIES.items() if entry.draws}


def run(folder, devices, names, launcher=()):
    folder.mkdir()
    command = [sys.executable, *launcher, str(TESTS / "ddp_script.py"), str(devices), str(folder), *names]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": PATH}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return {name: [torch.load(folder / f"{name}_{rank}.pt") for rank in range(devices)] for name in names}


class Results(dict):
    """Results by learner; the first that is asked for trains all others that are slow, or quick, as it is."""

    def __init__(self, folder, devices):
        super().__init__()
        self.folder, self.devices = folder, devices

    def __missing__(self, name):
        quick = name in QUICK
        names = [other for other in LEARNERS if (other in QUICK) == quick]
        self |= run(self.folder / ("quick" if quick else "slow"), self.devices, names)
        return self[name]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("one_process"), 1)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("two_processes"), 2)


@pytest.mark.parametrize("name", named_cases(LEARNERS, QUICK))
def test_processes_end_with_the_same_parameters(two_processes, name):
    first, second = two_processes[name]
    for key, value in first["state"].items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, second["state"][key]), key


@pytest.mark.parametrize("name", named_cases(sorted(LEARNERS.keys() - RANDOM), QUICK))
def test_two_processes_train_as_one_with_the_union_of_their_tasks(one_process, two_processes, name):
    (alone,), (first, second) = one_process[name], two_processes[name]
    for key, value in alone["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-6, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")
    together = torch.cat([first["seen"], second["seen"]])
    if not ENTRIES[name].is_transfer:  # whose examples return in each epoch
        assert set(first["seen"].tolist()).isdisjoint(second["seen"].tolist())
        assert len(together) == TASKS_PER_STEP * STEPS
    torch.testing.assert_close(together.sort().values, alone["seen"].sort().values)


@pytest.mark.parametrize("name", named_cases(sorted(LEARNERS.keys() - RANDOM), QUICK))
def test_metrics_and_intervals_are_over_all_processes_tasks(one_process, two_processes, name):
    (alone,), both = one_process[name], two_processes[name]
    assert f"val/{ENTRIES[name].metric}_ci95" in alone["metrics"]
    for process in both:
        assert process["metrics"].keys() == alone["metrics"].keys()
        for key, value in alone["metrics"].items():
            assert process["metrics"][key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("name", named_cases(sorted(LEARNERS.keys() - RANDOM), QUICK))
def test_values_of_tasks_and_errors_are_those_of_one_process_in_order(one_process, two_processes, name):
    (alone,), both = one_process[name], two_processes[name]
    assert len(alone["per_task"]["loss"]) == 11
    for process in both:
        for key, value in alone["per_task"].items():
            torch.testing.assert_close(process["per_task"][key], value, rtol=1e-5, atol=1e-7, msg=key)
        assert process["scores"]["tasks"] == alone["scores"]["tasks"] == 11
        assert process["scores"]["score"] == alone["scores"]["score"]
        assert process["scores"]["quantiles"] == pytest.approx(alone["scores"]["quantiles"], rel=1e-5)


def test_evaluation_needs_a_task_for_every_process(monkeypatch):
    monkeypatch.setattr(episodes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(episodes.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(episodes.dist, "get_rank", lambda: 1)
    data = SinusoidDataModule(train_tasks=1, val_tasks=1)
    with pytest.raises(ValueError, match="1 tasks cannot be shared by 2 processes"):
        list(data.val_dataloader().sampler)
    assert list(data.train_dataloader().sampler) == [1]  # training rounds up


@pytest.mark.slow
def test_torchrun_starts_the_same_training(tmp_path, one_process):
    both = run(tmp_path / "torchrun", 2, ["MAML"], ("-m", "torch.distributed.run", "--nproc-per-node=2"))
    for key, value in one_process["MAML"][0]["state"].items():
        for process in both["MAML"]:
            torch.testing.assert_close(process["state"][key], value, rtol=1e-6, atol=1e-9)
