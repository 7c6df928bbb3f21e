"""Sweeps of Weights & Biases: read and started as its agent does, with the values of one run."""

from __future__ import annotations

import random

import pytest
import torch
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from lightning_meta.cli import main
from tests.offline_runs import without_connection, without_drawing
from tests.shipped import ROOT, small

SWEEPS = sorted((ROOT / "configs/sweeps").glob("*.yaml"))


def test_sweeps_promised_are_there():
    assert {"sinusoid_maml", "omniglot_maml", "clinc150_maml", "omniglot_imaml"} <= {path.stem for path in SWEEPS}


def sampled(parameter):
    """A value that Weights & Biases could choose for a run."""
    if "values" in parameter:
        return random.choice(parameter["values"])
    assert parameter["distribution"] == "log_uniform_values"
    assert 0 < parameter["min"] < parameter["max"]
    return parameter["min"] * (parameter["max"] / parameter["min"]) ** random.random()


def command_of(sweep, values):
    """The command that the agent starts for a run."""
    parts = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    parts |= {"env": ["/usr/bin/env"], "program": [sweep["program"]]}
    command = []
    for part in create_sweep_command(list(sweep["command"])):
        command += parts[part[2:-1]] if part.startswith("${") else [part]
    return command


@pytest.mark.usefixtures("random_omniglot")
@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_run_of_a_sweep_takes_its_values(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_drawing(monkeypatch)
    random.seed(0)
    sweep = yaml.safe_load(path.read_text())
    assert sweep["method"] in ("bayes", "random")
    values = {name: sampled(parameter) for name, parameter in sweep["parameters"].items()}
    env, program, command, *arguments = command_of(sweep, values)
    assert (env, program, command) == ("/usr/bin/env", "lightning-meta", "fit")
    config = ROOT / f"configs/{path.stem}.yaml"
    assert arguments[0] == f"--config=configs/{path.stem}.yaml"
    arguments = [argument.replace("=configs/", f"={ROOT}/configs/") for argument in arguments]
    _, _, *lean = small(config)
    with without_connection(tmp_path):
        cli = main([command, *arguments, *lean])
        logged = dict(cli.trainer.logger.experiment.config)
    metrics = cli.trainer.callback_metrics
    assert torch.isfinite(metrics[sweep["metric"]["name"]])
    goal = "maximize" if sweep["metric"]["name"] == "val/acc" else "minimize"
    assert sweep["metric"]["goal"] == goal
    for name, value in values.items():
        assert logged[name] == pytest.approx(value)
    assert cli.model.inner_lr == pytest.approx(values["model.inner_lr"])
    assert cli.trainer.optimizers[0].defaults["lr"] == pytest.approx(values["model.optimizer.lr"])
