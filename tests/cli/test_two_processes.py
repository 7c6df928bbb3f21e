"""What two processes print and save together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polars as pl

from tests.cli.test_output import SMALL

ROOT = Path(__file__).parent.parent.parent
TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]


def test_two_processes_print_one_table_and_one_last_line(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", "lightning_meta", "test", *SMALL, *TWO],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Means over 4 test tasks") == 1
    assert "sync_dist" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Saved: ")]
    (saved,) = tmp_path.rglob("per_task.csv")
    assert f"metrics of each task {saved.relative_to(tmp_path)}" in line
    assert f"│ {pl.read_csv(saved)['mse'].mean():.4g} ± " in done.stdout
