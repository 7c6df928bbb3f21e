"""``examples/user_project``: a package outside of the library, run as its user runs it."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from lightning_meta.cli import main

ROOT = Path(__file__).parent.parent.parent
CPU = ["--trainer.accelerator=cpu", "--data.train_tasks=64", "--trainer.log_every_n_steps=1"]


def ran(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_project_outside_the_library(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "user_project"
    ignored = shutil.ignore_patterns("__pycache__", "lightning_logs", "examples.csv")
    shutil.copytree(ROOT / "examples/user_project", folder, ignore=ignored)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    runpy.run_path("make_table.py")
    out = ran(folder, "-m", "lightning_meta", "fit", "--config", "my_project.yaml", *CPU)
    (checkpoint,) = folder.rglob("*.ckpt")
    assert f"checkpoint {checkpoint.relative_to(folder)}" in out
    arguments = ["--config", "my_project.yaml", *CPU]
    main(["test", *arguments, "--ckpt_path", str(checkpoint)])
    (saved,) = folder.rglob("per_task.csv")
    assert f"│ acc    │ {pl.read_csv(saved)['acc'].mean():.4g} ± " in capsys.readouterr().out

    from my_project.learner import MedianPrototypes

    learner = MedianPrototypes.load_from_checkpoint(checkpoint)
    assert float(learner.log_temperature.detach()) != 0  # its start; training changed it
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, "--model.temprature=2"])
    assert stopped.value.code == 2
    assert "temprature" in capsys.readouterr().err
    import test_my_project

    test_my_project.test_queries_go_to_the_class_with_the_nearest_median()
