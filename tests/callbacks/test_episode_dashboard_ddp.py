"""The dashboard on two processes: the first one shows it, with the metrics of all tasks; training does not change."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch

from tests.scripts import run_script

SCRIPT = Path(__file__).with_name("dashboard_on_two_processes.py")


def test_the_first_of_two_processes_shows_all_tasks(tmp_path):
    run_script(SCRIPT, tmp_path)
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
