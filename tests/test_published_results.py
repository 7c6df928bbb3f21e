"""What the shipped configurations reach; minutes each, so not in the default run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_meta.cli import main

CONFIGS = Path(__file__).parent.parent / "configs"
pytestmark = pytest.mark.slow


def trained(config, *arguments):
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    cli = main(["fit", "--config", str(CONFIGS / config), *quiet, *arguments])
    (results,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return results


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_sinusoid_maml_after_one_and_ten_steps():
    results = trained("sinusoid_maml.yaml")
    assert results["test/mse_pre"] > 2.5
    assert results["test/mse_step_1"] < 0.42
    assert results["test/mse_step_10"] < 0.14


def test_sinusoid_maml_with_five_steps():
    assert trained("sinusoid_maml_5step.yaml")["test/mse_step_10"] < 0.07


@pytest.mark.skipif("OMNIGLOT_ROOT" not in os.environ, reason="OMNIGLOT_ROOT does not name the folder of Omniglot")
def test_omniglot_maml_on_unseen_classes(tmp_path):
    root = Path(os.environ["OMNIGLOT_ROOT"]).resolve()
    results = trained("omniglot_maml.yaml", f"--data.root={root}", f"--data.cache_dir={tmp_path}")
    assert results["test/acc"] >= 0.97
