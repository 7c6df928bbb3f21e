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


def test_errors_of_other_code_keep_their_traceback(monkeypatch):
    def broken():
        raise ValueError("a mistake in the code")

    monkeypatch.setattr("lightning_meta.cli.main", broken)
    with pytest.raises(ValueError, match="a mistake in the code"):
        command()


def test_from_python_errors_are_raised():
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["fit", f"--config={CONFIGS}/omniglot_maml.yaml", "--data.root=nowhere", *QUIET])
