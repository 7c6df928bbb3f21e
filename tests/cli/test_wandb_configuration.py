"""The configuration that adds Weights & Biases to any other, and what its runs hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import wandb
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_meta.callbacks import EpisodeDashboard
from lightning_meta.cli import main
from lightning_meta.cli.run_configuration import flattened
from tests.offline_runs import offline_runs, without_connection, without_drawing
from tests.shipped import CONFIGS, ROOT, small

WANDB = ["--config", str(ROOT / "configs/logger/wandb.yaml")]


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    without_drawing(monkeypatch)
    with without_connection(tmp_path):
        yield


def run_of(tmp_path, *arguments):
    """Run the command line; return it, and what the offline run holds."""
    cli = main(list(arguments))
    wandb.finish()
    return cli, offline_runs(tmp_path)[-1]


# One of each learner and of each data set: what they add to does not depend on more.
CHOSEN = [path for path in CONFIGS if path.stem.split("_", 1)[1] in ("maml", "protonet") or "sinusoid" in path.stem]


@pytest.mark.parametrize("config", CHOSEN, ids=lambda path: path.stem)
def test_it_adds_to_every_configuration(config, tmp_path):
    (tmp_path / "own.yaml").write_text("trainer: {callbacks: [{class_path: LearningRateMonitor}]}")
    arguments = ["--config", str(config), "--config", "own.yaml", *WANDB, "--trainer.logger.offline=true"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *arguments, "--print_config"])
    assert stopped.value.code in (0, None)


@pytest.mark.usefixtures("random_omniglot")
@pytest.mark.parametrize("name", ["sinusoid_metasgd", "omniglot_abml", "clinc150_maml"])
def test_a_run_holds_examples_and_its_configuration(name, tmp_path):
    arguments = small(ROOT / f"configs/{name}.yaml")
    cli, run = run_of(tmp_path, "fit", *arguments, *WANDB, "--trainer.log_every_n_steps=1")
    assert isinstance(cli.trainer.logger, WandbLogger)
    assert any(isinstance(callback, EpisodeDashboard) for callback in cli.trainer.callbacks)
    kind = {"omniglot": "picture", "clinc150": "text", "sinusoid": "input"}[name.split("_")[0]]
    examples = run.table("val_episodes/examples")
    assert examples["columns"][:4] == ["task", "set", kind, "truth"]
    inputs = [row[2] for row in examples["data"]]
    if kind == "picture":
        assert all(cell["_type"] == "image-file" and cell["width"] == 28 for cell in inputs)
        with Image.open(run.picture("val_episodes/examples", inputs[-1])) as picture:
            assert picture.size == (28, 28)
        assert "val_episodes/tasks" in run.keys
    elif kind == "text":
        assert all("sentence" in text for text in inputs)
    else:
        assert all(isinstance(number, float) for number in inputs)
    assert run.config["model.class_path"].endswith(type(cli.model).__name__)
    assert run.config["model.optimizer.lr"] == cli.trainer.optimizers[0].defaults["lr"]
    assert run.config["data.tasks_per_batch"] == 2
    assert run.config["trainer.max_epochs"] == 1
    (files,) = [files for kind, files in run.artifacts.values() if kind == "config"]
    with open(files["config.yaml"]) as file:
        assert flattened(yaml.safe_load(file)).items() <= run.config.items()


def test_own_callbacks_and_later_flags_stay(tmp_path):
    (tmp_path / "own.yaml").write_text("trainer: {callbacks: [{class_path: LearningRateMonitor}]}")
    arguments = [*small(ROOT / "configs/sinusoid_maml.yaml"), "--config", "own.yaml", *WANDB]
    flags = ["--trainer.logger.offline=true", "--trainer.logger.project=other", "--trainer.callbacks.num_episodes=2"]
    cli, run = run_of(tmp_path, "fit", *arguments, *flags)
    assert sum(isinstance(callback, LearningRateMonitor) for callback in cli.trainer.callbacks) == 1
    (dashboard,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, EpisodeDashboard)]
    assert dashboard.num_episodes == 2
    assert cli.trainer.logger.name == "other"
    assert {row[0] for row in run.table("val_episodes/examples")["data"]} == {0, 1}
    assert "lr-Adam" in run.keys


def test_checkpoints_are_artifacts_on_request(tmp_path):
    arguments = small(ROOT / "configs/sinusoid_maml.yaml")
    cli, run = run_of(tmp_path, "fit", *arguments, *WANDB)
    assert not [name for name, (kind, _) in run.artifacts.items() if kind == "model"]
    cli, run = run_of(tmp_path, "fit", *arguments, *WANDB, "--trainer.logger.log_model=all")
    (files,) = [files for kind, files in run.artifacts.values() if kind == "model"]
    loaded = type(cli.model).load_from_checkpoint(files["model.ckpt"])
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in cli.model.state_dict().items())


def test_validation_and_test_have_a_dashboard_too(tmp_path):
    arguments = small(ROOT / "configs/sinusoid_maml.yaml")
    for command, stage in (("validate", "val"), ("test", "test")):
        _, run = run_of(tmp_path, command, *arguments, *WANDB)
        assert {f"{stage}/mse", f"{stage}_episodes/examples", f"{stage}_episodes/adaptation"} <= run.keys


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_configuration_of_any_run_serves_other_commands(command, tmp_path):
    _, run = run_of(tmp_path, command, *small(ROOT / "configs/sinusoid_maml.yaml"), *WANDB)
    (files,) = [files for kind, files in run.artifacts.values() if kind == "config"]
    for other in ("fit", "predict"):
        with pytest.raises(SystemExit) as stopped:
            main([other, "--config", files["config.yaml"], "--print_config"])
        assert stopped.value.code in (0, None)
    for path in (files["config.yaml"], with_arguments_of_commands(tmp_path, files["config.yaml"])):
        main(["dashboard", "--entity=me", "--project=mine", "--config", path, "--output=panels.json", "--overwrite"])
        assert "val/mse" in (tmp_path / "panels.json").read_text()


def with_arguments_of_commands(folder, path):
    """Write a configuration as the commands save it in the folder of their logs."""
    arguments = {"ckpt_path": None, "weights_only": None, "verbose": True, "return_predictions": None}
    (folder / "saved.yaml").write_text(yaml.safe_dump(yaml.safe_load(Path(path).read_text()) | arguments))
    return str(folder / "saved.yaml")
