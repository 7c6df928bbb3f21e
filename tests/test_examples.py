"""The examples run; those on users' problems on small files in the publishers' layouts."""

import runpy
import sys
from pathlib import Path

import pytest

from tests.domains import write_clinc, write_physionet, write_sp500

EXAMPLES = Path(__file__).parent.parent / "examples"
FEW = {"val_tasks": 20, "test_tasks": 20}  # baselines are tested for each of their penalties


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_text_intents(tmp_path, capsys):
    write_clinc(tmp_path)
    runpy.run_path(str(EXAMPLES / "text_intents.py"))["main"](str(tmp_path), steps=2, **FEW)
    printed = capsys.readouterr().out
    assert "nearest prototype" in printed
    assert "95 % intervals over tasks of these classes" in printed
    assert "prediction" in printed


def test_patients(tmp_path, capsys):
    write_physionet(tmp_path, parameter="HCT")
    few = {"train_patients": 20, "val_patients": 4, "test_patients": 4}
    runpy.run_path(str(EXAMPLES / "patients.py"))["main"](str(tmp_path), steps=2, **few)
    assert "last value" in capsys.readouterr().out
    assert Path("outputs/patients.png").stat().st_size > 10_000


def test_stocks(tmp_path, capsys):
    write_sp500(tmp_path)
    runpy.run_path(str(EXAMPLES / "stocks.py"))["main"](str(tmp_path), steps=2)
    assert "last value" in capsys.readouterr().out


def test_predict_a_table(capsys):
    runpy.run_path(str(EXAMPLES / "predict_a_table.py"))["main"](epochs=1, train_tasks=32, **FEW)
    assert "upper_90" in capsys.readouterr().out
    assert Path("outputs/predict_a_table/trained.ckpt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["maml", "reptile", "imaml"])
def test_sinusoid_demo(algorithm, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sinusoid_demo.py", algorithm])
    runpy.run_path(str(EXAMPLES / "sinusoid_demo.py"), run_name="__main__")
    assert "mean squared error on 600 unseen tasks" in capsys.readouterr().out
    assert Path("outputs/sinusoid_demo.png").stat().st_size > 10_000


@pytest.mark.slow
def test_posterior_tightening(capsys):
    runpy.run_path(str(EXAMPLES / "posterior_tightening.py"), run_name="__main__")
    assert "12 support points" in capsys.readouterr().out
    assert Path("outputs/posterior_tightening.png").stat().st_size > 10_000
