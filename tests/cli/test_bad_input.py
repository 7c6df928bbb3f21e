"""Common mistakes end the program with one message and status 2; other errors keep their traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_meta.cli import command, main

CONFIGS = Path(__file__).parent.parent.parent / "configs"
QUIET = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_model_summary=false"]


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--config=missing.yaml"], "missing.yaml"),
        (["fit", f"--config={CONFIGS}/omniglot_maml.yaml", "--data.root=nowhere"], "root='nowhere' does not exist"),
        (["fit", "--model=my.missing.Learner", "--data=SinusoidDataModule"], "No module named 'my'"),
        (["test", f"--config={CONFIGS}/sinusoid_maml.yaml", "--ckpt_path=no.ckpt"], "no.ckpt"),
        (["fit", f"--config={CONFIGS}/sinusoid_maml.yaml", "--model.inner_lr=-1"], "inner_lr=-1.0 must be a positive"),
    ],
    ids=["configuration", "data", "class", "checkpoint", "value"],
)
def test_bad_input_is_one_message(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["lightning-meta", *arguments, *QUIET])
    with pytest.raises(SystemExit) as stopped:
        command()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


LEARNER = """
import lightning as L
from lightning_meta import MAML

class Own(MAML):
    def on_fit_start(self):
        {}
"""


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("raise ValueError('a mistake in the code')", ValueError),
        ("open('nowhere')", FileNotFoundError),
        ("self.adapt(self.model, self.model)", Exception),
        ("import numpy; numpy.load('nowhere.npy')", FileNotFoundError),
    ],
)
def test_errors_of_other_code_keep_their_traceback(mistake, error, tmp_path, monkeypatch):
    name = f"own_{abs(hash(mistake))}"
    (tmp_path / f"{name}.py").write_text(LEARNER.format(mistake))
    monkeypatch.syspath_prepend(tmp_path)
    model = [f"--model={name}.Own", "--model.model=MLP", "--model.loss_fn=torch.nn.MSELoss"]
    arguments = ["fit", *model, "--data=SinusoidDataModule", "--data.train_tasks=25", "--trainer.max_epochs=1"]
    monkeypatch.setattr("sys.argv", ["lightning-meta", *arguments, *QUIET])
    with pytest.raises(error) as raised:
        command()
    assert f"{name}.py" in {entry.path.name for entry in raised.traceback}


@pytest.mark.parametrize("place", ["flag", "class_path", "configuration"])
@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("x = undefined_name", NameError),
        ("import missing_package", ModuleNotFoundError),
        ("raise ValueError('early')", ValueError),
    ],
)
def test_a_module_that_fails_on_import_keeps_its_traceback(place, text, error, tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.py").write_text(text)
    (tmp_path / "own.yaml").write_text("model: {class_path: broken.A}")
    monkeypatch.syspath_prepend(tmp_path)
    model = {"flag": "--model=broken.A", "class_path": "--model.class_path=broken.A", "configuration": "-c=own.yaml"}
    arguments = ["fit", model[place].replace("-c=", "--config="), "--data=SinusoidDataModule"]
    monkeypatch.setattr("sys.argv", ["lightning-meta", *arguments])
    with pytest.raises(error) as raised:
        command()
    assert raised.traceback[-1].path.name == "broken.py"


def test_from_python_errors_are_raised():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["fit", f"--config={CONFIGS}/omniglot_maml.yaml", "--data.root=nowhere", *QUIET])
