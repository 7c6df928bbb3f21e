"""The tool behind `make results`: what it runs, where it goes on, what its page says."""

from __future__ import annotations

import fcntl
import json
import math
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from lightning_meta.cli import main
from tools.results import __main__ as tool
from tools.results import runs
from tools.results.page import rows, write_page
from tools.results.record import Record, digest_of
from tools.results.runs import Run
from tools.results.tables import ROOT, budgets, configuration_bytes, tables

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def record(**changed):
    values = {
        "configuration": "clinc150_maml",
        "algorithm": "MAML",
        "budget": "shipped",
        "commands": ["lightning-meta fit --config configs/clinc150_maml.yaml"],
        "seed": 3,
        "digest": digest_of(configuration_bytes(changed.get("configuration", "clinc150_maml"), [])),
        "commit": "0123abc",
        "minutes": 12.4,
        "device": "CPU, 2 threads",
        "versions": {},
        "tasks": 600,
        "metrics": {"acc": (0.8125, 0.0075), "acc_pre": (0.2, 0.003)},
        "comparison": [
            {"learner": "MAML", "metric": "acc", "mean": 0.8125, "ci95": 0.0075},
            {"learner": "MAML, no adaptation", "metric": "acc", "mean": 0.2, "ci95": 0.003},
            {"learner": "nearest prototype", "metric": "acc", "mean": 0.671, "ci95": 0.01},
        ],
    }
    return Record(**{**values, **changed})


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in text.splitlines() if row.startswith("|")]


def test_every_configuration_is_in_one_table():
    named = [name for table in tables() for name in table["configurations"]]
    assert sorted(named) == CONFIGS
    assert list(budgets("shipped")) == named


@pytest.mark.parametrize("name", budgets("paper"))
def test_the_papers_budgets_are_flags_that_change_what_they_name(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", f"{ROOT}/configs/{name}.yaml", *budgets("paper")[name], "--print_config"])
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    for flag, value in zip(budgets("paper")[name][::2], budgets("paper")[name][1::2], strict=True):
        path = flag.removeprefix("--").split(".")
        if path[0] in ("data", "model"):
            path.insert(1, "init_args")
        found = printed
        for key in path:
            found = found[key]
        assert found == int(value)


def test_the_page_has_results_baselines_and_what_was_not_run(tmp_path):
    record().write(tmp_path / "clinc150_maml.json")
    write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    text = page.split("## CLINC150\n")[1].split("\n## ")[0]
    _, _, *body = cells(text)
    assert body[0][:5] == ["`MAML`", "81.25 ± 0.75 %", "", "", "12 min on CPU, 2 threads"]
    assert body[0][5] == "`clinc150_maml`, 3, 0123abc"
    assert [row[:2] for row in body[1:]] == [
        ["*MAML before adaptation*", "20.00 ± 0.30 %"],
        ["*nearest prototype*", "67.10 ± 1.00 %"],
    ]
    others = [name for name in CONFIGS if name.startswith("clinc150") and name != "clinc150_maml"]
    assert all(f"`{name}`" in text.split("Not run yet: ")[1] for name in others)
    assert "Not run yet: `sp500_maml`, `sp500_bayesian_maml`, `sp500_amortized_maml`.\n" in page


def test_published_figures_are_beside_ours_and_errors_in_the_targets_units(tmp_path):
    compared = [
        {"learner": "MAML", "metric": "rmse", "mean": 1.5, "ci95": 0.13},
        {"learner": "MAML, no adaptation", "metric": "rmse", "mean": 3.3, "ci95": 0.2},
        {"learner": "last value", "metric": "rmse", "mean": 1.24, "ci95": 0.15},
    ]
    metrics = {"mse": (0.7, 0.1), "mse_pre": (0.9, 0.1)}
    record(configuration="physionet_maml", metrics=metrics, comparison=compared, minutes=0.5).write(
        tmp_path / "physionet_maml.json"
    )
    write_page(tmp_path, tmp_path / "page.md")
    _, _, *body = cells((tmp_path / "page.md").read_text())
    assert body[0][1:5] == ["1.500 ± 0.130", "", "1.90 (Rothfuss et al., 2021)", "30 s on CPU, 2 threads"]
    assert [row[1] for row in body[1:]] == ["3.300 ± 0.200", "1.240 ± 0.150"]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"acc": (0.9, 0.01), "ece": (0.0236, 0.002)}, "calibration error 2.4 %"),
        (
            {
                "acc": (0.9, 0.01),
                "ece": (0.05, 0.002),
                "ood_auroc_total": (0.8, 0.1),
                "ood_auroc_epistemic": (0.9, 0.2),
            },
            "calibration error 5.0 %; AUROC 0.900 ± 0.200",
        ),
        ({"acc": (0.9, 0.01), "coverage_90": (0.91, 0.005)}, "coverage 91.00 ± 0.50 %"),
    ],
)
def test_uncertainty_has_a_column(tmp_path, metrics, expected):
    record(metrics=metrics).write(tmp_path / "clinc150_maml.json")
    _, _, row = cells(rows(tmp_path, "MAML"))
    assert row[2] == expected


def test_the_rows_of_an_algorithm_are_its_own(tmp_path):
    record().write(tmp_path / "clinc150_maml.json")
    record(configuration="clinc150_reptile", algorithm="Reptile").write(tmp_path / "clinc150_reptile.json")
    _, _, row = cells(rows(tmp_path, "Reptile"))
    assert row[0] == "CLINC150"
    assert row[5].startswith("`clinc150_reptile`")
    assert rows(tmp_path, "ProtoNet") == ""


def test_a_record_is_read_as_written(tmp_path):
    record().write(tmp_path / "a.json")
    read = Record.read(tmp_path / "a.json")
    assert read is not None
    assert read.summary() == record().summary()
    assert read.digest == record().digest
    assert Record.read(tmp_path / "b.json") is None


def test_the_shipped_page_is_written_from_the_shipped_results(tmp_path):
    write_page(ROOT / "results", tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "results" / "index.md").read_text()


def test_what_an_earlier_configuration_reached_is_not_shown(tmp_path):
    record(digest=digest_of(b"earlier")).write(tmp_path / "clinc150_maml.json")
    assert rows(tmp_path, "MAML") == ""
    write_page(tmp_path, tmp_path / "page.md")
    assert "Not run yet: `clinc150_maml`" in (tmp_path / "page.md").read_text()


def test_a_papers_budget_and_learners_of_one_class_are_told_apart(tmp_path):
    paper = digest_of(configuration_bytes("omniglot_maml", budgets("paper")["omniglot_maml"]))
    record(configuration="omniglot_maml").write(tmp_path / "omniglot_maml.json")
    record(configuration="omniglot_maml", budget="paper", digest=paper).write(tmp_path / "omniglot_maml_paper.json")
    compared = [{"learner": "MAML", "metric": "rmse", "mean": 0.7, "ci95": 0.1}]
    compared += [{"learner": "mean of the support", "metric": "rmse", "mean": 1.9, "ci95": 0.2}]
    sinusoid = record(configuration="sinusoid_fomaml", metrics={"mse": (0.5, 0.05)}, comparison=compared)
    sinusoid.write(tmp_path / "sinusoid_fomaml.json")
    _, _, first, second, third = cells(rows(tmp_path, "MAML"))
    assert first[1] == "0.500 ± 0.050; root 0.700 ± 0.100"
    assert second[4] == "12 min on CPU, 2 threads"
    assert third[4] == "12 min on CPU, 2 threads, the paper's budget"
    write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| `MAML`, first order |" in page
    assert "| *mean of the support* | root 1.900 ± 0.200 |" in page


class Commands:
    """Stands for the commands: notes their arguments, leaves the files that they leave, and can be interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.called: list[list[str]] = []
        self.interrupted = ""

    def __call__(self, arguments, state=None, progress=None):
        self.called.append(arguments)
        version = self.folder / "lightning_logs" / f"version_{len(self.called)}"
        (version / "checkpoints").mkdir(parents=True)
        if arguments[0] == "fit":
            (version / "checkpoints" / f"step={len(self.called)}.ckpt").touch()
            progress["minutes"] += 1.5
            state.write_text(json.dumps(progress))
        if arguments[0] == self.interrupted:
            raise KeyboardInterrupt
        if arguments[0] == "test":
            pl.DataFrame({"task": [0, 1, 2, 3], "mse": [1.0, 2.0, 3.0, 6.0]}).write_csv(version / "per_task.csv")
        if arguments[0] == "baselines":
            pl.DataFrame({"learner": ["MAML"], "metric": ["rmse"], "mean": [1.5], "ci95": [0.5]}).write_csv(
                self.folder / "comparison.csv"
            )


@pytest.fixture
def made(tmp_path, monkeypatch):
    def make():
        run = Run("sinusoid_maml", "shipped", ["--trainer.max_epochs", "2"], tmp_path)
        run.folder, run.result = tmp_path / "run", tmp_path / "result.json"
        monkeypatch.setattr(run, "_call", commands)
        return run

    commands = Commands(tmp_path / "run")
    return make, commands


def test_an_interrupted_training_goes_on_and_its_minutes_are_added(made, monkeypatch):
    make, commands = made
    monkeypatch.setattr(runs, "_commit", iter(["first", "second"]).__next__)
    commands.interrupted = "fit"
    with pytest.raises(KeyboardInterrupt):
        make().complete()
    commands.interrupted = ""
    found = make().complete()
    fits = [arguments for arguments in commands.called if arguments[0] == "fit"]
    assert "--ckpt_path" not in fits[0]
    assert fits[1][fits[1].index("--ckpt_path") + 1] == "lightning_logs/version_1/checkpoints/step=1.ckpt"
    assert found.minutes == 3.0
    assert found.commit == "first, second"
    assert found.metrics["mse"] == pytest.approx((3.0, 1.96 * math.sqrt(14 / 3) / 2))
    assert found.tasks == 4
    assert found.commands[0] == "lightning-meta fit --config configs/sinusoid_maml.yaml --trainer.max_epochs 2"


def test_a_finished_training_is_not_repeated_but_a_changed_configuration_is(made):
    make, commands = made
    commands.interrupted = "test"
    with pytest.raises(KeyboardInterrupt):
        make().complete()
    commands.interrupted = ""
    make().complete()
    assert [arguments[0] for arguments in commands.called] == ["fit", "test", "test", "baselines"]
    changed = make()
    changed.digest = digest_of(b"changed")
    changed.complete()
    assert [arguments[0] for arguments in commands.called[4:]] == ["fit", "test", "baselines"]
    assert "--ckpt_path" not in commands.called[4]


def test_data_that_are_not_there_are_named(tmp_path):
    assert Run("sinusoid_maml", "shipped", [], tmp_path).missing_data() is None
    assert Run("omniglot_maml", "shipped", [], tmp_path).missing_data() == tmp_path / "omniglot"
    assert Run("parkinsons_maml", "shipped", [], tmp_path).missing_data() == (
        tmp_path / "parkinsons_telemonitoring" / "parkinsons_updrs.data"
    )


def test_a_command_that_fails_is_told_with_its_output(tmp_path):
    run = Run("sinusoid_maml", "shipped", [], tmp_path)
    run.folder = tmp_path
    with pytest.raises(RuntimeError, match=r"`lightning-meta fit` failed, see the end of .*output\.txt"):
        run._call(["fit", "--no_such_flag"])
    assert "no_such_flag" in (tmp_path / "output.txt").read_text()


def test_a_command_is_ended_when_the_tool_is(tmp_path, monkeypatch):
    run = Run("sinusoid_maml", "shipped", [], tmp_path)
    run.folder = tmp_path
    started = []

    class Process(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"], **options)
            started.append(self)

        def wait(self, timeout=None):
            if len(started) == 1 and timeout == runs._SAVE_TIME_SECONDS:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Process)
    state, progress = tmp_path / "run.json", {"minutes": 2.0}
    with pytest.raises(KeyboardInterrupt):
        run._call(["fit"], state, progress)
    assert started[0].poll() is not None
    assert json.loads(state.read_text())["minutes"] > 2.0


@pytest.fixture
def tool_in(tmp_path, monkeypatch):
    """Runs the tool in a folder of its own with stand-ins for its runs; returns the status."""
    done = []

    class Done(Run):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.result, self.folder = tmp_path / f"{self.name}.json", tmp_path / "runs" / self.name

        def complete(self):
            done.append(self.name)
            if self.name == "sinusoid_fomaml":
                raise RuntimeError("`lightning-meta fit` failed")
            if self.name == "sinusoid_reptile":
                raise KeyboardInterrupt
            return record(configuration=self.name, metrics={"mse": (0.4, 0.03)})

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["results", *arguments])
        done.clear()
        return tool.main(), list(done)

    monkeypatch.setattr(tool, "Run", Done)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "FOLDER", tmp_path)
    monkeypatch.setattr(tool, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(tool.signal, "signal", lambda *_: None)
    return call


def test_what_has_a_result_is_not_run_again_unless_asked(tool_in, capsys, tmp_path):
    assert tool_in("sinusoid_maml", "sinusoid_metasgd", "omniglot_maml", "--data", str(tmp_path)) == (
        0,
        ["sinusoid_maml", "sinusoid_metasgd"],
    )
    assert f"omniglot_maml: skipped, there is no {tmp_path / 'omniglot'}" in capsys.readouterr().out
    assert tool_in("sinusoid_maml") == (0, [])
    assert tool_in("sinusoid_maml", "--again") == (0, ["sinusoid_maml"])


def test_a_failure_does_not_keep_others_from_running(tool_in, capsys):
    assert tool_in("sinusoid_fomaml", "sinusoid_maml") == (1, ["sinusoid_fomaml", "sinusoid_maml"])
    assert "sinusoid_fomaml: `lightning-meta fit` failed" in capsys.readouterr().out


def test_an_interruption_ends_it_and_an_old_result_does_not_come_back(tool_in, tmp_path):
    record(configuration="sinusoid_reptile").write(tmp_path / "sinusoid_reptile.json")
    assert tool_in("sinusoid_reptile", "sinusoid_maml", "--again") == (130, ["sinusoid_reptile"])
    assert tool_in("sinusoid_reptile") == (130, ["sinusoid_reptile"])


def test_mistyped_names_and_a_second_process_are_refused(tool_in, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        tool_in("sinusoid_mamll")
    assert stopped.value.code == 2
    assert "sinusoid_mamll" in capsys.readouterr().err
    folder = tmp_path / "outputs" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SystemExit) as stopped:
            tool_in("sinusoid_maml")
    assert stopped.value.code == 1


@pytest.mark.slow
def test_a_small_training_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "FOLDER", tmp_path)
    small = ["--trainer.max_epochs=2", "--data.train_tasks=50", "--data.val_tasks=4", "--data.test_tasks=4"]
    run = Run("sinusoid_maml", "shipped", small, tmp_path)
    run.folder, run.result = tmp_path / "run", tmp_path / "result.json"
    found = run.complete()
    assert found.algorithm == "MAML"
    assert found.tasks == 4
    assert found.minutes > 0
    assert [row["learner"] for row in found.comparison][:2] == ["MAML", "MAML, no adaptation"]
    assert "mse_step_10" in found.metrics
