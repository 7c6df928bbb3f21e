"""What commands print: the table of results, the progress bar, and where things are saved."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar

from lightning_meta.cli import main
from lightning_meta.cli.progress_bar import AdaptationProgressBar
from lightning_meta.cli.result_table import print_results

CONFIG = Path(__file__).parent.parent.parent / "configs/sinusoid_maml.yaml"
SMALL = [
    *("--config", str(CONFIG), "--trainer.max_epochs=1", "--trainer.enable_model_summary=false"),
    *("--trainer.accelerator=cpu", "--trainer.check_val_every_n_epoch=1", "--data.tasks_per_batch=2"),
    *("--data.train_tasks=4", "--data.val_tasks=4", "--data.test_tasks=4"),
]


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def places(out: str) -> dict[str, Path]:
    """The places that the only line about them names, all of which exist."""
    (line,) = [line for line in out.splitlines() if line.startswith("Saved: ")]
    found = {name: Path(path) for name, path in re.findall(r"([a-z ]+) ([^ ,]+)", line.removeprefix("Saved:"))}
    found = {name.strip(): path for name, path in found.items()}
    assert all(path.exists() for path in found.values())
    return found


@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val")])
def test_the_table_has_the_logged_values_and_intervals(command, stage, capsys):
    cli = main([command, *SMALL])
    out = capsys.readouterr().out
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}

    def cell(name: str) -> str:
        return f"{metrics[f'{stage}/{name}']:.4g} ± {metrics[f'{stage}/{name}_ci95']:.2g}"

    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if "│" in line]
    assert ["mse", cell("mse_pre"), cell("mse")] in rows
    assert ["loss", "", cell("loss")] in rows
    assert [[str(step), cell(f"mse_step_{step}")] for step in range(11)] == rows[:11]
    assert f"Means over 4 {stage} tasks, ± 95 % interval over tasks." in out
    assert "DataLoader 0" not in out
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("Saved")) <= 80


def test_no_table_without_verbose(capsys):
    main(["test", *SMALL, "--verbose=false"])
    assert "│" not in capsys.readouterr().out


def test_the_table_of_a_learner_without_inner_steps(capsys):
    names = ("acc", "nll", "ece")
    metrics = {f"test/{n}{suffix}": torch.tensor(0.25) for n in names for suffix in ("", "_ci95")}
    print_results(metrics | {"test/own": torch.tensor(3.0), "val/acc": torch.tensor(9.0)}, "test", 600, "over these")
    out = capsys.readouterr().out
    assert "before" not in out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("│")] == [*names, "own"]
    assert "Means over 600 test tasks, ± 95 % interval over these." in out


def test_own_metrics_that_end_like_others_have_rows(capsys):
    own = ("auc_pre", "cov_ci95", "skill_step_2", "[best]")
    names = ["acc", "acc_ci95", "acc_pre", "acc_pre_ci95", "acc_step_0", "acc_step_1", *own]
    print_results({f"test/{name}": torch.tensor(0.25) for name in names}, "test", 600, "over tasks")
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line.startswith("│")]
    assert rows[:2] == [["0", "0.25"], ["1", "0.25"]]
    assert rows[2] == ["acc", "0.25 ± 0.25", "0.25 ± 0.25"]
    assert rows[3:] == [[name, "", "0.25"] for name in own]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["loss", "mse", "mse_pre", "nll", "ece"], {"val/mse": "1.000 -> 1.000"}),
        (["loss", "acc", "nll"], {"val/acc": "1.000"}),
    ],
    ids=["adapts", "does not"],
)
def test_the_bar_has_one_metric(names, expected, monkeypatch):
    values = {f"val/{name}": 1.0 for name in names}
    bar = {name: value for name, value in values.items() if "_" not in name}
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: bar)
    trainer = SimpleNamespace(callback_metrics={name: torch.tensor(value) for name, value in values.items()})
    assert AdaptationProgressBar().get_metrics(trainer, None) == expected


class Shown(Callback):
    """Keeps what the progress bar shows at the end of the training."""

    def on_train_end(self, trainer, pl_module):
        self.items = trainer.progress_bar_callback.get_metrics(trainer, pl_module)


def test_the_bar_shows_the_metric_before_and_after_adaptation(capsys):
    cli = main(["fit", *SMALL, f"--trainer.callbacks={__name__}.Shown"])
    assert type(cli.trainer.progress_bar_callback) is AdaptationProgressBar
    (shown,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, Shown)]
    before, after = (float(cli.trainer.callback_metrics[f"val/mse{suffix}"]) for suffix in ("_pre", ""))
    assert set(shown.items) == {"loss", "val/mse"}
    assert shown.items["val/mse"] == f"{before:.3f} -> {after:.3f}"
    assert "Epoch" not in capsys.readouterr().out  # no bar where the output is no terminal


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")  # barebones
@pytest.mark.parametrize(
    ("arguments", "bar"),
    [
        (["--trainer.enable_progress_bar=false"], type(None)),
        (["--trainer.barebones=true", "--trainer.logger=false"], type(None)),
        (["--trainer.callbacks=TQDMProgressBar"], TQDMProgressBar),
        (["--trainer.callbacks+=RichProgressBar"], RichProgressBar),
    ],
    ids=["none", "barebones", "tqdm", "rich"],
)
def test_another_bar_may_be_chosen(arguments, bar):
    cli = main(["fit", *SMALL, *arguments] if "barebones" not in arguments[0] else ["validate", *SMALL[:2], *arguments])
    assert type(cli.trainer.progress_bar_callback) is bar


def test_each_command_says_where_things_are_saved(capsys):
    main(["fit", *SMALL])
    found = places(capsys.readouterr().out)
    assert found["checkpoint"].suffix == ".ckpt"
    assert found["configuration"] == found["logs"] / "config.yaml"
    checkpoint = str(found["checkpoint"])
    main(["validate", *SMALL, "--ckpt_path", checkpoint])
    assert places(capsys.readouterr().out)["metrics"].name == "metrics.csv"
    main(["test", *SMALL, "--ckpt_path", checkpoint])
    assert places(capsys.readouterr().out)["metrics of each task"].name == "per_task.csv"
    main(["predict", *SMALL, "--ckpt_path", checkpoint])
    assert places(capsys.readouterr().out)["outputs"].name == "predictions.pt"


def test_without_a_logger_there_are_no_logs(capsys):
    main(["fit", *SMALL, "--trainer.logger=false"])
    assert set(places(capsys.readouterr().out)) == {"checkpoint"}


def test_nothing_is_said_to_be_saved_that_is_not(capsys):
    main(["fit", *SMALL, "--trainer.fast_dev_run=true"])
    assert "Saved: " not in capsys.readouterr().out


@pytest.mark.parametrize(("every", "told"), [("2", True), ("1", False)])
def test_a_training_without_a_checkpoint_says_so(every, told, capsys):
    main(["fit", *SMALL, f"--trainer.check_val_every_n_epoch={every}"])
    out = capsys.readouterr().out
    assert ("No checkpoint was saved" in out) == told
    assert ("checkpoint" in places(out)) != told


def test_folders_of_tensorboard(capsys):
    main(["fit", *SMALL, "--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=boards"])
    assert places(capsys.readouterr().out)["logs"].parts[0] == "boards"


def test_folders_of_weights_and_biases(capsys, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    main(["fit", *SMALL, "--trainer.logger=WandbLogger", "--trainer.logger.offline=true"])
    wandb.finish()
    found = places(capsys.readouterr().out)
    assert found["logs"].name.startswith("offline-run-")
    assert "checkpoint" in found


class Interrupts(Callback):
    """Presses Ctrl-C in the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_after_an_interrupt_the_checkpoint_to_resume_from_is_named(capsys):
    several = [*SMALL, "--trainer.max_epochs=3"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *several, f"--trainer.callbacks={__name__}.Interrupts"])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    checkpoint = places(out)["checkpoint"]
    assert f"Resume with the same command and --ckpt_path {checkpoint}" in out
    assert main(["fit", *several, "--ckpt_path", str(checkpoint)]).trainer.current_epoch == 3
