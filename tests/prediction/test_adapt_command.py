"""``lightning-meta adapt``: its output, and that bad input gets one clear error and writes nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from torch import nn

from lightning_meta import MAML, MLP, SinusoidDataModule
from lightning_meta.cli import main
from tests.prediction.trained import (
    image_checkpoint,
    picture,
    sentences,
    table_checkpoint,
    text_checkpoint,
    trainer,
    visits,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return table_checkpoint(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_checkpoint(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return image_checkpoint(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def adapt(checkpoint: str, *further: str, support="labelled.csv", query="new.csv", output="predictions.csv"):
    files = ["--support", support, "--query", query, "--output", output]
    return main(["adapt", "--ckpt_path", checkpoint, *files, *further])


def refused(capsys, *arguments, **files) -> str:
    """Run a command that must fail; return its message. Nothing may be written."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        adapt(*arguments, **files)
    assert stopped.value.code == 2
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def rows(patients: int = 2) -> pl.DataFrame:
    return visits(patients, 12, seed=5)


@pytest.mark.parametrize("ending", ["csv", "parquet", "json", "jsonl"])
def test_predictions_are_written_in_the_format_of_the_name(table, ending):
    rows().write_csv("labelled.csv")
    rows().drop("pain").write_csv("new.csv")
    found = adapt(table, output=f"predictions.{ending}")
    read = {"csv": pl.read_csv, "parquet": pl.read_parquet, "json": pl.read_json, "jsonl": pl.read_ndjson}[ending]
    saved = read(f"predictions.{ending}")
    assert saved.columns == found.columns
    assert saved["mean"].to_list() == pytest.approx(found["mean"].to_list())
    assert sorted(map(str, Path().iterdir())) == sorted(["labelled.csv", "new.csv", f"predictions.{ending}"])


def test_it_runs_as_a_program(table):
    rows().write_csv("labelled.csv")
    rows().write_csv("new.csv")
    command = [sys.executable, "-m", "lightning_meta", "adapt", "--ckpt_path", table, "--coverage", "0.5"]
    files = ["--support", "labelled.csv", "--query", "new.csv", "--output", "predictions.csv"]
    done = subprocess.run(
        [*command, *files], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    assert "24 predictions are saved in predictions.csv" in done.stderr
    assert {"lower_50", "upper_50"} <= set(pl.read_csv("predictions.csv").columns)


def test_another_task_column(table):
    rows().rename({"patient": "person"}).write_csv("labelled.csv")
    rows().rename({"patient": "person"}).write_csv("new.csv")
    one = adapt(table)
    two = adapt(table, "--task_column", "person", output="two.csv")
    assert not one["mean"].equals(two["mean"])


def test_an_existing_output_is_kept_unless_asked(table, capsys):
    rows().write_csv("labelled.csv")
    rows().write_csv("new.csv")
    Path("predictions.csv").write_text("mine")
    assert "predictions.csv' exists" in refused(capsys, table)
    adapt(table, "--overwrite")
    assert "mean" in pl.read_csv("predictions.csv").columns
    assert "also an input" in refused(capsys, table, "--overwrite", output="new.csv")


@pytest.mark.parametrize(
    ("support", "query", "message"),
    [
        (rows().rename({"size": "sizes"}), rows(), "'labelled.csv' has no such column: did you mean 'sizes'"),
        (rows(), rows().rename({"size": "sizes"}), "'new.csv' has no such column: did you mean 'sizes'"),
        (rows().rename({"pain": "paint"}), rows(), "target_column='pain'.*did you mean 'paint'"),
        (rows().with_columns(pain=pl.lit(None)), rows(), "column 'pain' of 'labelled.csv' is empty in 24 rows"),
        (rows().with_columns(pain=pl.lit("much")), rows(), "'pain' holds 'much'"),
        (rows(), rows().with_columns(patient=pl.lit("p9")), "rows of task 'p9', which the support lacks"),
        (rows().drop("patient"), rows().with_columns(mean=0.0), "already has a column 'mean'"),
        (rows(), rows().with_columns(size=pl.lit("big")), "'size' holds 'big'"),
        (rows(), rows()[:0], "has no rows"),
    ],
)
def test_bad_tables(table, capsys, support, query, message):
    support.write_csv("labelled.csv")
    query.write_csv("new.csv")
    assert re.search(message, refused(capsys, table))


def test_bad_texts(text, capsys):
    good = sentences(3, each=4)
    good.write_csv("labelled.csv")
    good.with_columns(intent=pl.lit("intent 77")).write_csv("new.csv")
    assert "'intent 77', which is none of the classes 'intent 00', 'intent 01'" in refused(capsys, text)
    good.with_columns(request=pl.lit(" ")).write_csv("new.csv")
    assert "is empty in 12 of 12 rows" in refused(capsys, text)
    good.write_csv("new.csv")
    good.with_columns(intent=pl.lit("same")).write_csv("labelled.csv")
    assert "at least two classes" in refused(capsys, text)


def test_predictions_of_rows_depend_on_each_other_only_with_batch_statistics(tmp_path, capsys):
    checkpoint = image_checkpoint(tmp_path, batch_statistics="batch")
    for hue in (10, 100, 180):
        picture(Path("labelled") / f"class {hue}" / "1.png", hue, 1)
        picture(Path("new") / f"{hue}.png", hue, 2)
    for hue in (10, 100):
        picture(Path("two") / f"{hue}.png", hue, 2)
    picture(Path("one") / "10.png", 10, 2)
    shares = {}
    for choice in ("batch", "support"):
        for query in ("new", "two"):
            if choice == "batch":
                with pytest.warns(UserWarning, match="depend on each other"):
                    found = adapt(checkpoint, support="labelled", query=query, output=f"{choice}_{query}.csv")
            else:
                found = adapt(
                    checkpoint, "--batch_statistics=support", support="labelled", query=query, output=f"{query}.csv"
                )
            shares[choice, query] = found.filter(pl.col("file").str.ends_with("10.png"))["probability_class 10"][0]
    assert shares["support", "new"] == pytest.approx(shares["support", "two"], rel=1e-4)
    assert shares["batch", "new"] != pytest.approx(shares["batch", "two"], rel=1e-4)
    with pytest.warns(UserWarning, match="depend on each other"):
        assert "pass batch_statistics='support'" in refused(capsys, checkpoint, support="labelled", query="one")
    adapt(checkpoint, "--batch_statistics=support", support="labelled", query="one")


def test_bad_pictures(pictures, capsys):
    for name in ("a", "b"):
        picture(Path("labelled") / name / "1.png", 50, 1)
    picture(Path("new") / "1.png", 50, 1)
    folders = {"support": "labelled", "query": "new"}
    Path("new/2.png").write_bytes(b"no picture")
    assert "2.png" in refused(capsys, pictures, **folders)
    Path("new/2.png").unlink()
    Path("labelled/b/1.png").write_bytes(b"no picture")
    assert "1.png" in refused(capsys, pictures, **folders)
    assert "nowhere" in refused(capsys, pictures, support="nowhere", query="new")


def test_checkpoints_of_another_kind_of_data(table, text, pictures, capsys):
    rows().write_csv("labelled.csv")
    rows().write_csv("new.csv")
    assert "trained on pictures" in refused(capsys, pictures)
    assert "no such column" in refused(capsys, text)
    picture(Path("labelled") / "a" / "1.png", 50, 1)
    picture(Path("new") / "1.png", 50, 1)
    for checkpoint in (table, text):
        assert "is a folder" in refused(capsys, checkpoint, support="labelled", query="new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--coverage", "1.5"], "coverage=1.5 must lie between 0 and 1"),
        (["--steps", "-1"], "steps=-1"),
        (["--task_colum", "patient"], "task_colum"),
        (["--output", "predictions.xlsx"], "does not end in one of"),
        (["--output", "nowhere/predictions.csv"], "there is no folder 'nowhere'"),
        (["--support", "nowhere.csv"], "nowhere.csv"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--ckpt_path", "new.csv"], "new.csv cannot be read"),
    ],
)
def test_bad_arguments(table, capsys, arguments, message):
    rows().write_csv("labelled.csv")
    rows().write_csv("new.csv")
    assert message in refused(capsys, table, *arguments)


def test_a_checkpoint_without_preparation(tmp_path, capsys):
    trained = trainer(tmp_path)
    trained.fit(MAML(MLP(), nn.MSELoss()), SinusoidDataModule(train_tasks=25, val_tasks=5))
    rows().write_csv("labelled.csv")
    rows().write_csv("new.csv")
    message = refused(capsys, trained.checkpoint_callback.best_model_path)
    assert "does not say how files become tensors" in message


def test_errors_of_a_users_code_keep_their_traceback(table, tmp_path, monkeypatch):
    (tmp_path / "own_forward.py").write_text("def forward(self, x):\n    raise ValueError('a mistake in the code')\n")
    monkeypatch.syspath_prepend(tmp_path)
    from own_forward import forward

    rows().write_csv("labelled.csv")
    rows().write_csv("new.csv")
    monkeypatch.setattr(MLP, "forward", forward)
    with pytest.raises(ValueError, match="a mistake in the code"):
        adapt(table)
