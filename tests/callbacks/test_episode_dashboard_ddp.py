"""The dashboard on two processes: the first one shows it, with the metrics of all tasks; training does not change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

SCRIPT = Path(__file__).with_name("dashboard_on_two_processes.py")


def test_the_first_of_two_processes_shows_all_tasks(tmp_path):
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(SCRIPT.parents[2])]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        (weights, draws), (own_weights, own_draws) = (
            torch.load(tmp_path / f"{name}_{rank}.pt") for name in ("without", "with")
        )
        assert torch.equal(draws, own_draws)
        assert all(torch.equal(own_weights[name], value) for name, value in weights.items())
    folders = sorted((tmp_path / "with/episodes").glob("*/*"))
    assert [f"{folder.parent.name}/{folder.name}" for folder in folders] == ["test/step_4", "val/step_1", "val/step_3"]
    tasks = pl.read_csv(folders[0] / "per_task.csv")
    assert tasks["task"].to_list() == list(range(7))
    assert tasks["mse"].to_list() == pytest.approx(torch.load(tmp_path / "alone_0.pt").tolist(), rel=1e-3)
    metrics = pl.read_csv(tmp_path / "with/metrics.csv")
    assert abs(tasks["mse"].mean() - metrics["test/mse"].drop_nulls()[-1]) < 1e-4
    assert pl.read_csv(folders[0] / "examples.csv")["task"].unique().sort().to_list() == [0, 2, 4]
