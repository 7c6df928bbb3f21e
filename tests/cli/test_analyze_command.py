"""``lightning-meta analyze``: reports, files, and checkpoints that do not fit the configuration."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import nn

from lightning_meta import MAML, MLP, SinusoidDataModule
from lightning_meta.cli import main
from lightning_meta.cli.analyze import command
from lightning_meta.cli.analyze.command import ANALYSES
from lightning_meta.cli.analyze.report import Report, output_folder

MODEL = ["--model=MAML", "--model.model=MLP", "--model.model.hidden=[8]", "--model.loss_fn=torch.nn.MSELoss"]
DATA = ["--data=SinusoidDataModule", "--data.train_tasks=16", "--data.val_tasks=6", "--data.shots=5"]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
FEW = ["--num_tasks=4", "--steps=5", "--probes=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoints of the same arguments, one saved by the command line and one by Python."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli = main(["fit", *MODEL, *DATA, *QUIET, "--trainer.max_epochs=1"])
    learner = MAML(MLP(hidden=[8]), nn.MSELoss())
    data = SinusoidDataModule(shots=5, train_tasks=16, val_tasks=6)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, data)
    trainer.save_checkpoint(folder / "python.ckpt")
    return {"command": folder / cli.trainer.checkpoint_callback.best_model_path, "python": folder / "python.ckpt"}


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "curvature", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert not list(Path().iterdir())
    return error


@pytest.mark.parametrize("saved_by", ["command", "python"])
def test_a_report_is_printed_and_saved(saved_by, trained, capsys):
    report = main(["analyze", "curvature", *MODEL, *DATA, *FEW, f"--ckpt_path={trained[saved_by]}", "--output=here"])
    printed = capsys.readouterr()
    assert "λ_max" in printed.out
    assert printed.out.splitlines()[-1] == "Saved: report here"
    assert not printed.err
    assert {path.name for path in Path("here").iterdir()} == {"report.json", "spectrum.png"}
    assert [path.name for path in Path().iterdir()] == ["here"]

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    saved = json.loads(Path("here/report.json").read_text(), parse_constant=refuse)
    assert saved["analysis"] == "curvature"
    assert saved["arguments"]["num_tasks"] == 4
    assert saved["advice"] == list(report.advice)
    assert saved["table"] == report.table.to_dicts()
    own = torch.load(trained[saved_by], weights_only=True)["state_dict"]
    learner = MAML(MLP(hidden=[8]), nn.MSELoss())
    learner.load_state_dict(own)
    data = SinusoidDataModule(shots=5, val_tasks=6)
    data.setup("fit")
    again = ANALYSES["curvature"](learner, data, num_tasks=4, steps=5, probes=1)
    assert again.table.equals(report.table)  # it was the trained learner


@pytest.mark.parametrize("saved_by", ["command", "python"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--model.inner_lr=0.2"], ["model.inner_lr is 0.01 in the checkpoint and 0.2", "--model.inner_lr 0.01"]),
        (["--model.inner_steps=3"], ["model.inner_steps is", "and 3 in"]),
        (["--model.learned_rates=tensor"], ["model.learned_rates is none in the checkpoint and tensor"]),
        (["--model.first_order=true"], ["model.first_order is False in the checkpoint and True"]),
        (["--model.model.hidden=[4]"], ["model.model.hidden is [8] in the checkpoint and [4]"]),
        (["--data.shots=7"], ["data.shots is 5 in the checkpoint and 7", "--data.shots 5"]),
        (["--model.loss_fn=torch.nn.L1Loss"], ["trained with loss_fn=MSELoss(), this learner has L1Loss()"]),
        (["--model.batch_statistics=support"], ["model.batch_statistics is batch in the checkpoint and support"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") else "",
)
def test_other_arguments_than_the_trainings_are_refused(saved_by, change, said, trained, capsys):
    error = refused([*MODEL, *DATA, *change, f"--ckpt_path={trained[saved_by]}", "--output=here"], capsys)
    for part in said:
        assert part in error
    if saved_by == "command":
        assert f"configuration as {trained[saved_by].parent.parent / 'config.yaml'}" in error


def test_another_class_of_learner_or_data_is_refused(trained, capsys):
    reptile = ["--model=Reptile", *MODEL[1:]]
    error = refused([*reptile, *DATA, f"--ckpt_path={trained['command']}"], capsys)
    assert "saved by lightning_meta.algorithms.gradient.maml.MAML, and this is" in error
    assert "load_from_checkpoint" not in error
    checkpoint = torch.load(trained["command"], weights_only=True)
    checkpoint["datamodule_hyper_parameters"]["_class_path"] = "lightning_meta.OmniglotDataModule"
    torch.save(checkpoint, trained["command"].with_name("other.ckpt"))
    error = refused([*MODEL, *DATA, f"--ckpt_path={trained['command'].with_name('other.ckpt')}"], capsys)
    assert "data.class is lightning_meta.OmniglotDataModule in the checkpoint and" in error


def test_arguments_of_evaluation_and_of_the_run_may_differ(trained):
    others = ["--model.eval_inner_steps=4", "--model.log_step_metrics=true", "--model.task_chunk_size=1"]
    others += ["--model.compile=false", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1"]
    others += ["--data.seed=3", "--data.val_tasks=5", "--data.eval_query_shots=9", "--data.tasks_per_batch=2"]
    for path in trained.values():
        report = main(["analyze", "curvature", *MODEL, *DATA, *others, *FEW, f"--ckpt_path={path}"])
        assert len(report.table) > 3


def test_differences_are_accepted_on_request_but_for_parameters_that_do_not_fit(trained, capsys):
    accepted = [*MODEL, *DATA, *FEW, f"--ckpt_path={trained['command']}", "--accept_differences"]
    report = main(["analyze", "curvature", *accepted, "--model.inner_lr=0.2", "--data.shots=7"])
    assert any("inner_lr=0.2" in sentence for sentence in report.advice)
    capsys.readouterr()
    error = refused([*accepted, "--model.model.hidden=[4]"], capsys)
    assert "the shape [8, 1] in the checkpoint and [4, 1] in the learner (and 2 more differences)" in error
    error = refused([*accepted, "--model.model.hidden=[8,8]"], capsys)
    assert "the checkpoint lacks model." in error
    error = refused([*accepted, "--model.learned_rates=tensor"], capsys)
    assert "the checkpoint lacks rates" in error or "learned_rates" in error


def test_baselines_refuse_the_same(trained, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["baselines", *MODEL, *DATA, *QUIET, "--model.inner_lr=0.2", f"--ckpt_path={trained['command']}"])
    assert stopped.value.code == 2
    assert "model.inner_lr is 0.01 in the checkpoint and 0.2" in capsys.readouterr().err


def test_an_output_folder_that_is_not_empty_is_refused_before_any_work(capsys, monkeypatch):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    monkeypatch.setattr(SinusoidDataModule, "setup", lambda *_: pytest.fail("work was done"))
    for output, message in (
        ("full", "is not empty: name another folder, or pass --overwrite"),
        ("full/mine.txt", "is a file"),
        ("full/mine.txt/deeper", "full/mine.txt/deeper"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["analyze", "curvature", *MODEL, *DATA, f"--output={output}"])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in Path("full").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("when", ["analysis", "picture"])
def test_ctrl_c_leaves_no_half_report(when, monkeypatch, capsys):
    def stop(*_args):
        raise KeyboardInterrupt

    def analysis(learner, data, num_tasks: int = 4) -> Report:
        """Say something."""
        if when == "analysis":
            stop()
        return Report(pl.DataFrame({"a": [1]}), (), pictures={"first": Figure, "second": stop})

    monkeypatch.setitem(ANALYSES, "own", analysis)
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "own", *MODEL, *DATA, "--output=deep/here"])
    assert stopped.value.code == 130
    assert "Nothing was saved" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_report_replaces_another_whole(tmp_path):
    first = Report(pl.DataFrame({"a": [1.0]}), ("One.",), pictures={"same": Figure})
    first.save(tmp_path)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Report(pl.DataFrame({"a": [2.0]}), (), pictures={"same": stop}).save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["advice"] == ["One."]
    second = Report(
        pl.DataFrame({"a": [2.0]}), ("Two.",), {"x": [np.float64("nan"), torch.tensor([np.inf]), np.int64(3)]}
    )
    with output_folder(str(tmp_path), overwrite=True) as folder:
        second.save(folder, place=Path("x"))
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["advice"] == ["Two."]
    assert saved["values"] == {"x": ["nan", ["inf"], 3]}
    assert saved["place"] == "x"


def test_wide_tables_continue_below_and_every_number_is_whole():
    columns = {f"a long name of a column {i}": [123.456789 + i, None] for i in range(8)}
    report = Report(pl.DataFrame({"quantity": ["[bold]first[/bold] row", "second"], **columns}), ("A sentence [x].",))
    with Path("out.txt").open("w") as file:
        report.show(Console(width=80, file=file))
    shown = Path("out.txt").read_text()
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"{123.456789 + i:.4g}" in shown for i in range(8))
    assert shown.count("[bold]first[/bold]") >= 2
    assert "A sentence [x]." in shown
    assert "…" not in shown


def test_help_names_the_analysis_and_its_flags(capsys):
    for arguments in (["--help"], []):
        with pytest.raises(SystemExit) as stopped:
            main(["analyze", *arguments])
        assert stopped.value.code == 0
        assert all(f"\n  {name} " in capsys.readouterr().out for name in list(ANALYSES)[:1])
    for name, analysis in ANALYSES.items():
        with pytest.raises(SystemExit) as stopped:
            main(["analyze", name, "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: lightning-meta analyze {name} --config FILE.yaml")
        flags = [flag for flag in inspect.signature(analysis).parameters if flag not in ("learner", "data")]
        assert all(f"--{flag}" in text for flag in [*flags, "accept_differences", "overwrite", "output"])
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "curvatur"])
    assert stopped.value.code == 2
    assert "did you mean 'curvature'?" in capsys.readouterr().err


def test_a_flag_cut_short_is_not_taken_for_another(capsys):
    assert "unrecognized arguments: --num_task" in refused([*MODEL, *DATA, "--num_task=3"], capsys)


def test_a_folder_is_no_checkpoint(capsys):
    assert "directory" in refused([*MODEL, *DATA, "--ckpt_path=/"], capsys)


def test_the_process_says_nothing_but_the_report():
    arguments = [*MODEL, *DATA, *FEW, "--trainer.accelerator=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "lightning_meta", "analyze", "curvature", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    assert "GPU" not in done.stdout
    assert "λ_max" in done.stdout
    assert not list(Path().iterdir())


def test_the_level_of_lightnings_messages_is_restored():
    loggers = [command.logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    main(["analyze", "curvature", *MODEL, *DATA, *FEW])
    assert [logger.level for logger in loggers] == before
