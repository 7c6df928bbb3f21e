"""What commands write, and that they replace no file of the user."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_meta.cli import main
from tests.cli.test_output import CONFIG, SMALL, places

NO_LOGGER = "--trainer.logger=false"


@pytest.fixture(autouse=True)
def _inside_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class InOneFolder(DummyLogger):
    """Has a folder, and none for each run, as the logger of MLFlow."""

    save_dir = "."


@pytest.mark.parametrize("logger", [NO_LOGGER, f"--trainer.logger={__name__}.InOneFolder"])
def test_a_configuration_of_the_user_is_not_replaced(logger, capsys):
    shutil.copy(CONFIG, "config.yaml")
    main(["fit", "--config", "config.yaml", *SMALL[2:], logger])
    assert Path("config.yaml").read_bytes() == CONFIG.read_bytes()
    saved = places(capsys.readouterr().out).get("configuration")
    assert saved == (None if logger == NO_LOGGER else Path("config_2.yaml"))


def test_a_second_run_in_a_folder_keeps_the_configuration_of_the_first(capsys):
    for epochs, name in enumerate(("config.yaml", "config_2.yaml")):
        main(["fit", *SMALL, "--trainer.logger.version=0", f"--trainer.max_epochs={epochs}"])
        saved = places(capsys.readouterr().out)["configuration"]
        assert saved == Path("lightning_logs/version_0") / name
        assert f"max_epochs: {epochs}\n" in saved.read_text()


@pytest.mark.parametrize(("command", "name"), [("test", "per_task.csv"), ("predict", "predictions.pt")])
def test_without_a_logger_a_result_replaces_no_file(command, name, capsys):
    Path(name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name}' exists .* --trainer.default_root_dir"):
        main([command, *SMALL, NO_LOGGER])
    main([command, *SMALL, "--trainer.fast_dev_run=true"])
    assert Path(name).read_text() == "mine"
    assert "Nothing was saved." in capsys.readouterr().out
    main([command, *SMALL, NO_LOGGER, "--trainer.default_root_dir=other"])
    assert Path("other", name) in places(capsys.readouterr().out).values()


def test_predictions_that_are_not_returned_are_not_saved(capsys):
    Path("predictions.pt").write_text("mine")
    main(["predict", *SMALL, NO_LOGGER, "--return_predictions=false"])
    assert "Nothing was saved." in capsys.readouterr().out
    assert Path("predictions.pt").read_text() == "mine"


class Interrupts(Callback):
    """Ends the training in its third epoch, when the first epoch's checkpoint is the best."""

    def __init__(self, by_key: bool) -> None:
        self.by_key = by_key

    def on_validation_end(self, trainer, pl_module):
        trainer.callback_metrics["val/loss"].fill_(trainer.current_epoch)

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            if self.by_key:
                raise KeyboardInterrupt
            sys.exit(3)


@pytest.mark.parametrize("by_key", [True, False])
def test_an_interrupted_training_resumes_from_the_newest_checkpoint(by_key, capsys):
    callbacks = [
        f"--trainer.callbacks+={__name__}.Interrupts",
        f"--trainer.callbacks.by_key={by_key}",
        *("--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"),
        *("--trainer.callbacks.save_top_k=2", "--trainer.callbacks.filename={epoch}"),
    ]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *SMALL, "--trainer.max_epochs=3", "--trainer.num_sanity_val_steps=0", *callbacks])
    assert stopped.value.code == (1 if by_key else 3)
    out = capsys.readouterr().out
    assert places(out)["checkpoint"].name == "epoch=0.ckpt"
    resume = [line.split(os.sep)[-1] for line in out.splitlines() if line.startswith("Resume")]
    assert resume == (["epoch=1.ckpt"] if by_key else [])
