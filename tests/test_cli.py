"""The command line: every configuration, every subcommand, overrides, resume, loggers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import wandb

from lightning_meta import ANIL, MAML, MetaLearner, MetaSGD
from lightning_meta.cli import main
from tests.shipped import CONFIGS, QUIET, ROOT, cases, classes_of, cost, run_by_default, slow_learners, small


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# Of each learner the cheapest, which the default run has unless the learner's costly tests are slow.
FIRST_OF_THEIR_LEARNER = {classes_of(own)[0]: own for own in sorted(CONFIGS, key=cost)[::-1]}


@pytest.mark.usefixtures("random_omniglot")
@pytest.mark.parametrize("config", cases())
def test_every_configuration_fits_tests_predicts_and_loads(config):
    cli = main(["fit", *small(config)])
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    metric = "acc" if config.stem.startswith(("omniglot", "clinc150", "cifarfs")) else "mse"
    assert {
        f"val/{metric}",
        f"val/{metric}_ci95",
        *([f"val/{metric}_pre"] if cli.model.inner_steps else []),
        "val/loss",
    } <= cli.trainer.callback_metrics.keys()
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    main(["test", *small(config), "--ckpt_path", checkpoint])
    if config in FIRST_OF_THEIR_LEARNER.values():  # the others differ from these in data and values alone
        for command in ["validate", "predict"]:
            main([command, *small(config), "--ckpt_path", checkpoint])
        predictions = torch.load(next(Path().rglob("predictions.pt")), weights_only=True)
        assert torch.cat(predictions).shape[0] == 4
    loaded = type(cli.model).load_from_checkpoint(checkpoint)
    assert type(loaded) is type(cli.model)
    assert repr(loaded.model) == repr(cli.model.model)
    assert repr(loaded.loss_fn) == repr(cli.model.loss_fn)
    for name, tensor in cli.model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)


@pytest.mark.usefixtures("random_omniglot")
def test_a_model_of_five_outputs_takes_up_to_five_ways():
    arguments = small(ROOT / "configs/omniglot_anil.yaml")
    main(["test", *arguments, "--data.ways=3"])
    with pytest.raises(
        ValueError, match="label 19 and the model has 5 outputs.* as many outputs as .* or use a learner .* ProtoMAML"
    ):
        main(["test", *arguments, "--data.ways=20", "--data.test_tasks=4000"])


@pytest.mark.usefixtures("random_omniglot")
@pytest.mark.parametrize("learner", ["proto_maml", "protonet"])
def test_learners_of_any_number_of_ways_are_tested_with_others(learner):
    arguments = small(ROOT / f"configs/omniglot_{learner}.yaml")
    checkpoint = main(["fit", *arguments]).trainer.checkpoint_callback.best_model_path
    for ways in (3, 20):
        cli = main(["test", *arguments, f"--data.ways={ways}", "--ckpt_path", checkpoint])
        assert 0 <= float(cli.trainer.callback_metrics["test/acc"]) <= 1


def test_configurations_promised_are_there():
    promised = {
        "sinusoid_maml",
        "omniglot_maml",
        "omniglot_maml_20way",
        "sinusoid_fomaml",
        "omniglot_anil",
        "sinusoid_metasgd",
    }
    assert promised <= {path.stem for path in CONFIGS}


def test_the_default_run_has_every_model_and_data_set_and_every_learner_that_is_not_slow():
    chosen = run_by_default()
    assert set(chosen) >= {own for name, own in FIRST_OF_THEIR_LEARNER.items() if name not in slow_learners()}
    named, all_names = ({name for own in configs for name in classes_of(own)} for configs in (chosen, CONFIGS))
    assert all_names - named <= slow_learners()
    assert {own.stem.split("_")[0] for own in chosen} == {own.stem.split("_")[0] for own in CONFIGS}


def test_every_flag_overrides():
    config = small(ROOT / "configs/sinusoid_maml.yaml")
    cli = main(
        ["fit", *config, "--model.inner_steps=3", "--model.adapt=head", "--data.shots=4", "--model.inner_lr=0.2"]
    )
    assert cli.model.inner_steps == 3
    assert cli.model.inner_lr == 0.2
    assert cli.model.adapted_names == ("layers.4.weight", "layers.4.bias")
    assert cli.datamodule.shots == 4
    cli = main(
        [
            "fit",
            *config,
            '--model.adapt=["layers.2.*"]',
            "--model.inner_optimizer=Adam",
            "--model.inner_optimizer.beta1=0",
        ]
    )
    assert cli.model.adapted_names == ("layers.2.weight", "layers.2.bias")
    assert cli.model.inner_optimizer.beta1 == 0


def test_short_names_without_a_configuration():
    cli = main(
        [
            "fit",
            "--model=MetaSGD",
            "--model.model=MLP",
            "--model.loss_fn=torch.nn.MSELoss",
            "--data=SinusoidDataModule",
            "--data.train_tasks=25",
            "--data.val_tasks=5",
            "--trainer.max_epochs=1",
            *QUIET,
        ]
    )
    assert isinstance(cli.model, MetaSGD)


def test_logs_go_to_csv_by_default():
    main(["fit", *small(ROOT / "configs/sinusoid_maml.yaml"), "--trainer.log_every_n_steps=1"])
    (metrics,) = Path("lightning_logs").rglob("metrics.csv")
    header = metrics.read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/loss", "val/mse", "val/mse_ci95", "val/mse_pre", "val/mse_step_1"} <= set(header)
    assert (metrics.parent / "config.yaml").exists()


def test_logs_go_to_the_root_that_is_named():
    main(["fit", *small(ROOT / "configs/sinusoid_maml.yaml"), "--trainer.default_root_dir=kept"])
    (metrics,) = Path().rglob("metrics.csv")
    assert metrics.is_relative_to("kept/lightning_logs")
    assert "save_dir: kept" in (metrics.parent / "config.yaml").read_text()


def test_a_saved_configuration_repeats_the_run():
    first = main(["fit", *small(ROOT / "configs/sinusoid_maml.yaml")])
    (saved,) = Path("lightning_logs").rglob("config.yaml")
    again = main(["fit", "--config", str(saved)])
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)


def test_flags_count_beside_a_checkpoint():
    arguments = small(ROOT / "configs/sinusoid_maml.yaml")
    checkpoint = main(["fit", *arguments]).trainer.checkpoint_callback.best_model_path
    changed = ["--model.eval_inner_steps=3", "--model.log_step_metrics=false"]
    cli = main(["test", *arguments, *changed, "--ckpt_path", checkpoint])
    assert cli.model.eval_inner_steps == 3
    assert not any("step" in key for key in cli.trainer.callback_metrics)


def test_resume_goes_on_from_the_checkpoint():
    arguments = small(ROOT / "configs/sinusoid_maml.yaml")
    first = main(["fit", *arguments])
    checkpoint = first.trainer.checkpoint_callback.best_model_path
    resumed = main(["fit", *arguments, "--trainer.max_epochs=3", "--ckpt_path", checkpoint])
    whole = main(["fit", *arguments, "--trainer.max_epochs=3"])
    assert resumed.trainer.global_step == 6
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_weights_and_biases_offline_has_every_key(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true", f"--trainer.logger.save_dir={tmp_path}"]
    arguments = [*small(ROOT / "configs/sinusoid_maml.yaml"), *logger, "--trainer.log_every_n_steps=1"]
    for _ in range(2):  # A second run in the same folder must not stumble over the first.
        cli = main(["fit", *arguments])
        run = cli.trainer.logger.experiment
        keys = set(run.summary.keys())
        config = dict(run.config)
        wandb.finish()
        assert {"train/loss", "val/loss", "val/mse", "val/mse_ci95", "val/mse_pre", "val/mse_step_10"} <= keys
        assert config["inner_lr"] == 0.01
        assert "SinusoidDataModule" in config["config"]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.inner_step=3"], "inner_step"),
        (["--model.inner_steps=many"], "inner_steps"),
        (["--data.shoots=3"], "shoots"),
        (["--model=MAMLL"], "MAMLL"),
    ],
)
def test_mistyped_arguments_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(ROOT / "configs/sinusoid_maml.yaml"), *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_module_runs_as_a_program():
    command = [sys.executable, "-m", "lightning_meta", "fit", "--model.help", "MAML"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: lightning-meta ")
    assert "--model.inner_steps" in done.stdout


def test_learners_are_meta_learners():
    assert all(issubclass(c, MetaLearner) for c in (MAML, ANIL, MetaSGD))


def test_a_test_saves_the_metrics_of_each_task():
    cli = main(["test", *small(ROOT / "configs/sinusoid_maml.yaml")])
    (path,) = Path("lightning_logs").rglob("per_task.csv")
    saved = pl.read_csv(path)
    assert saved["task"].to_list() == [0, 1, 2, 3]
    assert saved["mse"].mean() == pytest.approx(float(cli.trainer.callback_metrics["test/mse"]), rel=1e-5)
    assert {"loss", "mse_pre", "mse_step_10"} <= set(saved.columns)
