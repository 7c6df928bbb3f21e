"""Reading a checkpoint runs no code, whatever it names."""

from __future__ import annotations

import importlib
import io
import os
import pickle
import runpy
import shutil
import subprocess
from pathlib import Path

import fsspec
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn

from lightning_meta import MAML, MLP, EpisodicDataModule, SinusoidDataModule
from lightning_meta.cli import main
from tests.checkpoints.saved import QUIET, Evil, changed, save

fsspec.filesystem("file")  # imports its module when first used: not in a test that forbids imports


def payloads(file, pickled):
    """Hyper-parameters that would make ``file`` if anything that they name ran."""
    write, code = f"touch {file}", f"open({str(file)!r}, 'w')"
    shell = {"class_path": "subprocess.getoutput", "init_args": {"cmd": write}}
    system = {"class_path": "os.system", "init_args": {"command": write}}
    timing = {"class_path": "timeit.timeit", "init_args": {"stmt": code}}
    module = {"class_path": "evil_module.Model", "init_args": {}}
    linear = "torch.nn.modules.linear.Linear"
    return {
        "shell": {"loss_fn": shell},
        "system": {"optimizer": system},
        "timeit": {"lr_scheduler": timing},
        "timeit, optimizer": {"optimizer": timing},
        "runpy": {"loss_fn": {"class_path": "runpy.run_path", "init_args": {"path_name": str(pickled)}}},
        "pickle": {"loss_fn": {"class_path": "torch.load", "init_args": {"f": str(pickled), "weights_only": False}}},
        "eval": {"loss_fn": {"class_path": "builtins.eval", "init_args": {"source": code}}},
        "dict_kwargs": {"loss_fn": {"class_path": "subprocess.getoutput", "dict_kwargs": {"cmd": write}}},
        "popen": {"model": {"class_path": "subprocess.Popen", "init_args": {"args": write, "shell": True}}},
        "module": {"model": module},
        "module, rule": {"inner_optimizer": module},
        "name": {"loss_fn": "subprocess.getoutput"},
        "name, optimizer": {"optimizer": "os.system"},
        "name, module": {"loss_fn": "evil_module.loss"},
        "nested": {"model": {"class_path": linear, "init_args": {"in_features": shell, "out_features": 3}}},
        "deep": {"adapt": [{"a": ({"b": shell},)}]},
        "in a list": {"adapt": [shell]},
        "extra": {"something": shell},
        "in a container": {"model": {"class_path": "torch.nn.modules.container.Sequential", "modules": {"0": shell}}},
        "walk": {"loss_fn": {"class_path": "torch.nn.modules.module.torch.os.system", "init_args": {"command": write}}},
        "walk, module": {"loss_fn": {"class_path": "torch.os.system", "init_args": {"command": write}}},
        "our module": {
            "loss_fn": {
                "class_path": "lightning_meta.checkpoints.checked_io.torch.load",
                "init_args": {"f": str(pickled)},
            }
        },
        "our import": {
            "loss_fn": {"class_path": "lightning_meta.data.vision.omniglot_files.Path.touch", "init_args": {}}
        },
        "our path": {"loss_fn": {"class_path": "lightning_meta.data.vision.omniglot_files.Path", "init_args": {}}},
        "our download": {
            "loss_fn": {
                "class_path": "lightning_meta.data.vision.omniglot_files.load_omniglot",
                "init_args": {"root": str(file), "download": True},
            }
        },
        "our data": {"model": {"class_path": "lightning_meta.OmniglotDataModule", "init_args": {"root": str(file)}}},
        "our learner": {"model": {"class_path": "lightning_meta.MAML", "init_args": {"model": shell}}},
        "our main": {"model": {"class_path": "lightning_meta.__main__.main", "init_args": {}}},
        "torch's function": {"loss_fn": {"class_path": "torch.nn.functional.handle_torch_function", "init_args": {}}},
        "wrong kind": {"model": {"class_path": "torch.optim.adam.Adam", "init_args": {}}},
        "wrong kind, optimizer": {
            "optimizer": {"class_path": linear, "init_args": {"in_features": 1, "out_features": 1}}
        },
        "lambda": {
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": system}}
        },
        "distance": {
            "loss_fn": {
                "class_path": "torch.nn.modules.loss.TripletMarginWithDistanceLoss",
                "init_args": {"distance_function": shell},
            }
        },
        "activation": {
            "model": {
                "class_path": "torch.nn.modules.transformer.TransformerEncoderLayer",
                "init_args": {"d_model": 8, "nhead": 2, "activation": "os.system"},
            }
        },
        "keys": {"loss_fn": {"class_path": "torch.nn.modules.loss.MSELoss", "__path__": str(pickled), "init_args": {}}},
        "path list": {"loss_fn": {"class_path": ["os", "system"], "init_args": {}}},
        "no arguments": {"loss_fn": {"class_path": "torch.nn.modules.loss.MSELoss", "init_args": write}},
        "instantiator": {"_instantiator": "evil_module.instantiate"},
        "instantiator, system": {"_instantiator": "os.system"},
        "class": {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "evil_module.Model"},
        "class, system": {"_class_path": "subprocess.getoutput", "cmd": write},
        "learner": {"__meta_learner_class": "evil_module.Model"},
        "no text": {"loss_fn": {1, 2}},
    }


@pytest.mark.parametrize("name", payloads("", ""))
def test_nothing_that_a_checkpoint_names_is_run(tmp_path, trap, name, monkeypatch):
    class Open(MAML):
        def __init__(self, model=None, **options):
            super().__init__(MLP() if model is None else model, **options)

    tried = []
    for place, call in [(subprocess, "Popen"), (os, "system"), (importlib, "import_module"), (runpy, "run_path")]:
        monkeypatch.setattr(place, call, lambda *args, **kwargs: tried.append(args))
    payload = payloads(trap, tmp_path / "pickled.pt")[name]
    for cls in (MAML, Open):  # one whose arguments are known, and one that takes any
        path = changed(save(cls(MLP(), loss_fn=nn.MSELoss()), tmp_path), **payload)
        if name == "extra" and cls is MAML:
            MAML.load_from_checkpoint(path)  # no argument of its own: not looked at
            continue
        if payload.keys() <= {"_instantiator", "_class_path"} or ("cmd" in payload and cls is MAML):
            cls.load_from_checkpoint(path)  # nothing looks at these: learners build themselves
            continue
        if "cmd" in payload:
            with pytest.raises(TypeError, match="unexpected keyword argument 'cmd'"):
                cls.load_from_checkpoint(path)
            continue
        message = "evil_module" if name == "learner" else next(iter(payload))
        with pytest.raises(ValueError, match=message):
            cls.load_from_checkpoint(path)
        with pytest.raises(ValueError, match=message):
            cls.load_from_checkpoint(path, weights_only=True)
    assert not tried


@pytest.mark.parametrize("name", ["shell", "system", "timeit", "runpy", "module", "name", "instantiator", "class"])
def test_nothing_is_run_by_the_command_line_or_a_trainer_either(tmp_path, trap, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    payload = payloads(trap, tmp_path / "pickled.pt")[name]
    path = changed(save(MAML(MLP(), nn.MSELoss()), tmp_path), **payload)
    arguments = ["--model=MAML", "--model.model=MLP", "--model.loss_fn=torch.nn.MSELoss", "--data=SinusoidDataModule"]
    arguments += ["--data.test_tasks=5", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    cli = main(["test", *arguments, "--trainer.accelerator=cpu", "--ckpt_path", str(path)])
    assert isinstance(cli, LightningCLI)


def test_what_is_passed_takes_the_place_of_what_is_stored(tmp_path, trap):
    payload = payloads(trap, tmp_path / "pickled.pt")["shell"]
    path = changed(save(MAML(MLP(8, 3)), tmp_path), **payload)
    loaded = MAML.load_from_checkpoint(path, loss_fn=nn.CrossEntropyLoss())
    assert isinstance(loaded.loss_fn, nn.CrossEntropyLoss)


def test_data_modules_build_from_plain_values_alone(tmp_path, trap):
    data = SinusoidDataModule(shots=7, train_tasks=25, val_tasks=5)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    trainer.fit(MAML(MLP(), nn.MSELoss()), data)
    trainer.save_checkpoint(tmp_path / "data.ckpt")
    assert SinusoidDataModule.load_from_checkpoint(tmp_path / "data.ckpt").shots == 7
    shell = {"class_path": "subprocess.getoutput", "init_args": {"cmd": f"touch {trap}"}}
    path = changed(tmp_path / "data.ckpt", __datamodule_hyper_parameters={"train": shell})
    with pytest.raises(ValueError, match=r"train='subprocess.getoutput' .* refused.*pass train=..."):
        EpisodicDataModule.load_from_checkpoint(path)
    path = changed(tmp_path / "data.ckpt", __datamodule_hyper_parameters={"_instantiator": "evil_module.instantiate"})
    assert isinstance(SinusoidDataModule.load_from_checkpoint(path), SinusoidDataModule)  # nothing looks at it


@pytest.mark.parametrize("victim", ["{dirpath}/../precious", "memory://bucket/precious"])
@pytest.mark.parametrize("entry", ["best_k_models", "best_model_path", "last_model_path"])
def test_no_files_elsewhere_are_taken_for_checkpoints_to_delete(tmp_path, victim, entry):
    data = SinusoidDataModule(train_tasks=50, tasks_per_batch=25, val_tasks=5)

    def fit(ckpt_path=None):
        callback = ModelCheckpoint(tmp_path / "run", filename="{step}", monitor="train/loss", save_last=True)
        settings = QUIET | {
            "enable_checkpointing": True,
            "callbacks": [callback],
            "max_epochs": 1 if ckpt_path is None else 3,
        }
        trainer = L.Trainer(accelerator="cpu", **settings)
        trainer.fit(MAML(MLP(), nn.MSELoss()), data, ckpt_path=ckpt_path)
        return callback

    saved = fit()
    content = torch.load(saved.last_model_path)
    (state,) = (state for key, state in content["callbacks"].items() if key.startswith("ModelCheckpoint"))
    path = victim.format(dirpath=saved.dirpath)
    state[entry] = {path: torch.tensor(9.0)} if entry == "best_k_models" else path
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=f"ModelCheckpoint names {path}, outside its folder"):
        fit(tmp_path / "changed.ckpt")
    fit(saved.last_model_path)


@pytest.mark.parametrize("where", ["file", "stream", "http"])
def test_pickled_code_runs_only_if_asked_for(tmp_path, where, monkeypatch):
    file = tmp_path / "ran"
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    content = torch.load(path) | {"more": Evil(file)}
    torch.save(content, path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, target: shutil.copy(path, target))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sources = {
        "file": lambda: path,
        "stream": lambda: io.BytesIO(path.read_bytes()),
        "http": lambda: "https://host/a.ckpt",
    }
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        MAML.load_from_checkpoint(sources[where]())
    if where == "file":
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            trainer.test(MAML(MLP(), nn.MSELoss()), SinusoidDataModule(test_tasks=5), ckpt_path=path)
    assert not file.exists()
    assert isinstance(MAML.load_from_checkpoint(sources[where](), weights_only=False), MAML)
    assert file.exists()


@pytest.mark.parametrize("how", ["address", "folder's own", "file", "ending"])
def test_a_resumed_run_deletes_only_its_own_checkpoints(tmp_path, how):
    data = SinusoidDataModule(train_tasks=50, tasks_per_batch=25, val_tasks=5)

    def fit(folder, epochs, ckpt_path=None):
        callback = ModelCheckpoint(tmp_path / folder)
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=[callback], **QUIET | {"enable_checkpointing": True}
        )
        trainer.fit(MAML(MLP(), nn.MSELoss()), data, ckpt_path=ckpt_path)
        return callback

    first = fit("run", 1)
    content = torch.load(first.best_model_path)
    (key,) = (key for key in content["callbacks"] if key.startswith("ModelCheckpoint"))
    precious = (tmp_path / "run" if how == "ending" else tmp_path) / "precious"
    precious.write_text("mine")
    path = {"address": f"local://{precious}", "folder's own": f"local://{precious}"}.get(how, str(precious))
    content["callbacks"][key] = {"dirpath": "x", "best_model_path": path}
    if how == "folder's own":
        content["callbacks"][key]["dirpath"] = f"local://{tmp_path}"
    torch.save(content, tmp_path / "evil.ckpt")
    if how == "address":
        with pytest.raises(ValueError, match="ModelCheckpoint names local://.*/precious, outside its folder"):
            fit("run", 3, tmp_path / "evil.ckpt")
    else:
        fit("run", 3, tmp_path / "evil.ckpt")
    assert precious.read_text() == "mine"
    # A run goes on in another folder, and leaves the first one's checkpoint where it is.
    second = fit("other", 2, first.best_model_path)
    assert Path(first.best_model_path).exists()
    assert Path(second.best_model_path).parent == tmp_path / "other"
    again = fit("other", 3, second.best_model_path)
    assert again.best_model_path != second.best_model_path
