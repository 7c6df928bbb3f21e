"""What a checkpoint keeps and builds again, and that reading one runs no code."""

from __future__ import annotations

import copy
import enum
import functools
import importlib
import inspect
import io
import os
import pickle
import random
import runpy
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_meta import (
    ABML,
    ANIL,
    MAML,
    MLP,
    AmortizedMAML,
    BayesianLearner,
    EpisodicDataModule,
    ImplicitMAML,
    MetaLearner,
    Reptile,
    SinusoidDataModule,
)
from lightning_meta.checkpoints import content as checkpoint_content
from lightning_meta.checkpoints import object_text
from lightning_meta.cli import main
from lightning_meta.inner.update_rules import Momentum
from lightning_meta.models.set_encoder import SetEncoder

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def save(learner, folder, name="learner.ckpt"):
    trainer = L.Trainer(max_steps=0, accelerator="cpu", default_root_dir=folder, **QUIET)
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(folder / name)
    return folder / name


def changed(path, **entries):
    """A copy of a checkpoint with other hyper-parameters, and others of its own entries where named ``__so``."""
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= {name: value for name, value in entries.items() if not name.startswith("__")}
    content |= {name.removeprefix("__"): value for name, value in entries.items() if name.startswith("__")}
    torch.save(content, path.with_name("changed.ckpt"))
    return path.with_name("changed.ckpt")


def outputs(learner, features=8):
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(6, features, generator=generator), torch.arange(3).repeat(2)
    return learner.eval().adapt(x, y)(x)


# ---- What is kept. ------------------------------------------------------------------------------------------


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True, **options)


MODELS = {
    "flat": lambda: nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)),
    "nested": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(8, 6, bias=False), nn.Dropout(0.3), nn.GELU("tanh"), nn.Sequential(nn.LayerNorm(6))),
        nn.LeakyReLU(0.3),
        nn.Linear(6, 3),
    ),
    "named": lambda: nn.Sequential(
        nn.modules.container.OrderedDict(body=nn.Linear(8, 4), squash=nn.ELU(0.5), head=nn.Linear(4, 3))
    ),
    "images": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)),
        nn.Conv2d(1, 4, (1, 3), padding="same"),
        nn.MaxPool2d((2, 2)),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        encoder_layer(activation="gelu", norm_first=True, bias=False),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.TransformerEncoder(encoder_layer(), 2, nn.LayerNorm(8), enable_nested_tensor=False),
        nn.Flatten(),
        nn.Linear(8, 3),
    ),
    "ours": lambda: nn.Sequential(MLP(8, 4, hidden=(5,)), nn.Tanh(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("model", MODELS)
def test_models_of_torchs_modules_load_without_arguments(tmp_path, model):
    learner = MAML(MODELS[model](), nn.CrossEntropyLoss(ignore_index=-5), inner_lr=0.2)
    with torch.no_grad():
        for p in learner.parameters():
            p.add_(0.1 * torch.randn_like(p))
    loaded = MAML.load_from_checkpoint(save(learner, tmp_path))
    assert repr(loaded.model) == repr(learner.model)
    assert loaded.loss_fn.ignore_index == -5
    assert torch.equal(outputs(loaded), outputs(learner))
    again = MAML.load_from_checkpoint(save(loaded, tmp_path))
    assert torch.equal(outputs(again), outputs(learner))


def test_containers_inside_containers_are_kept(tmp_path):
    inner = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2), nn.ReLU()]), "b": nn.Linear(2, 1)})
    learner = MAML(nn.Sequential(nn.Linear(8, 3), inner))
    loaded = MAML.load_from_checkpoint(save(learner, tmp_path))
    assert repr(loaded.model) == repr(learner.model)
    assert loaded.state_dict().keys() == learner.state_dict().keys()


def test_rules_encoders_and_optimizers_are_kept(tmp_path):
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=3)
    optimizer = functools.partial(torch.optim.SGD, lr=0.25, momentum=0.5)
    learner = MAML(MLP(), nn.MSELoss(), inner_optimizer=Momentum(0.3), optimizer=optimizer, lr_scheduler=schedule)
    loaded = MAML.load_from_checkpoint(save(learner, tmp_path))
    assert loaded.inner_optimizer.beta == 0.3
    settings = loaded.configure_optimizers()
    assert isinstance(settings["optimizer"], torch.optim.SGD)
    assert settings["optimizer"].defaults["lr"] == 0.25
    assert settings["lr_scheduler"]["scheduler"].step_size == 3
    model = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    size = 2 * sum(p.numel() for p in model[0].parameters())
    learner = AmortizedMAML(model, nn.MSELoss(), encoder=SetEncoder(5, size, hidden=7))
    assert AmortizedMAML.load_from_checkpoint(save(learner, tmp_path)).encoder.hidden == 7


class Text(enum.StrEnum):
    SGD = "sgd"


def test_numbers_and_texts_of_other_types_are_kept_as_pythons_own(tmp_path):
    learner = MAML(
        MLP(8, 3), inner_lr=np.float64(0.25), inner_steps=np.int64(3), inner_optimizer=Text.SGD, adapt=("*",)
    )
    path = save(learner, tmp_path)
    kept = torch.load(path, weights_only=True)["hyper_parameters"]
    assert {type(kept[name]) for name in ("inner_lr", "inner_steps", "inner_optimizer")} == {float, int, str}
    loaded = MAML.load_from_checkpoint(path)
    assert (loaded.inner_lr, loaded.inner_steps) == (0.25, 3)
    assert torch.equal(outputs(loaded), outputs(learner))


class Own(nn.Linear):
    pass


def shared():
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(8, 3))


def tied():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model[2].weight = model[0].weight
    return model


def patched():
    model = nn.Sequential(nn.Linear(8, 3))
    model[0].forward = lambda x: 2 * nn.functional.linear(x, model[0].weight)
    return model


def hooked():
    model = nn.Sequential(nn.Linear(8, 3))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def replaced():
    model = MLP(8, 3)
    model.layers[1] = nn.Tanh()
    return model


def frozen():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


def with_attribute():
    model = nn.Sequential(nn.Linear(8, 3))
    model[0].scale = 2.0
    return model


UNKEPT = {
    "own": lambda: nn.Sequential(Own(8, 3)),
    "shared": shared,
    "tied": tied,
    "patched": patched,
    "hooked": hooked,
    "replaced": replaced,
    "frozen": frozen,
    "attribute": with_attribute,
    "double": lambda: nn.Sequential(nn.Linear(8, 3)).double(),
    "activation": lambda: nn.Sequential(encoder_layer(activation=torch.tanh), nn.Linear(8, 3)),
    "parametrized": lambda: nn.Sequential(weight_norm(nn.Linear(8, 3))),
    "unread": lambda: nn.Sequential(nn.Bilinear(2, 2, 3, bias=False), nn.MultiheadAttention(8, 2, add_bias_kv=True)),
    "weighted loss": lambda: nn.CrossEntropyLoss(torch.ones(3)),
    "function in loss": lambda: nn.TripletMarginWithDistanceLoss(distance_function=torch.dist),
}


@pytest.mark.parametrize("model", UNKEPT)
def test_what_could_not_be_built_again_is_asked_for(tmp_path, model):
    value = UNKEPT[model]()
    is_loss = "loss" in model
    learner = MAML(nn.Linear(8, 3) if is_loss else value, **({"loss_fn": value} if is_loss else {}))
    path = save(learner, tmp_path)
    name = "loss_fn" if is_loss else "model"
    with pytest.raises(ValueError, match=f"pass {name}=..."):
        MAML.load_from_checkpoint(path)
    loaded = MAML.load_from_checkpoint(path, **{name: copy.deepcopy(value)})
    assert loaded.state_dict().keys() == learner.state_dict().keys()


# ---- Subclasses. --------------------------------------------------------------------------------------------


class HeadOnly(MAML):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, adapt="head", **kwargs)


class Explicit(MAML):
    def __init__(self, model, loss_fn=None, inner_lr=0.3):
        super().__init__(model, loss_fn, inner_lr=inner_lr, adapt="head")


class Wider(HeadOnly):
    def __init__(self, width, *rest, steps=2, **options):
        super().__init__(MLP(8, 3, hidden=(width,)), *rest, inner_steps=steps, **options)


class Closed(MAML):
    def __init__(self):
        super().__init__(MLP(8, 3), nn.CrossEntropyLoss(), inner_lr=0.4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeadOnly(MLP(8, 3), nn.CrossEntropyLoss(), 0.2, inner_steps=3),
        lambda: HeadOnly(model=MLP(8, 3), inner_lr=0.2),
        lambda: Explicit(MLP(8, 3)),
        lambda: Explicit(nn.Sequential(nn.Linear(8, 3)), nn.CrossEntropyLoss(), 0.1),
        lambda: Wider(6, nn.CrossEntropyLoss(), 0.2, steps=3, learned_rates="tensor"),
        Closed,
    ],
)
def test_subclasses_that_fix_arguments_load(tmp_path, make):
    learner = make()
    loaded = type(learner).load_from_checkpoint(save(learner, tmp_path))
    assert type(loaded) is type(learner)
    assert loaded.adapted_names == learner.adapted_names
    assert (loaded.inner_lr, loaded.inner_steps) == (learner.inner_lr, learner.inner_steps)
    assert torch.equal(outputs(loaded), outputs(learner))


def test_unnamed_arguments_are_kept_or_told(tmp_path):
    class Layers(MAML):
        def __init__(self, *sizes, **options):
            super().__init__(MLP(*sizes), **options)

    learner = Layers(8, 3, (5,), inner_lr=0.3)
    loaded = Layers.load_from_checkpoint(save(learner, tmp_path))
    assert loaded.inner_lr == 0.3
    assert torch.equal(outputs(loaded), outputs(learner))
    learner = Wider(6, lambda output, target: nn.functional.cross_entropy(output, target))
    with pytest.raises(ValueError, match=r"\*rest=tuple, which it cannot keep .*: name its arguments where"):
        Wider.load_from_checkpoint(save(learner, tmp_path))


def test_what_was_passed_is_kept_rather_than_what_became_of_it(tmp_path):
    class Deeper(MAML):
        def __init__(self, model, lr=0.1):
            model = nn.Sequential(model, nn.Linear(3, 3))
            lr = 2 * lr
            super().__init__(model, inner_lr=lr)

    learner = Deeper(nn.Linear(8, 3), 0.2)
    loaded = Deeper.load_from_checkpoint(save(learner, tmp_path))
    assert loaded.inner_lr == learner.inner_lr == 0.4
    assert dict(loaded.hparams)["lr"] == 0.2
    assert torch.equal(outputs(loaded), outputs(learner))


def test_a_learner_shows_the_arguments_that_its_constructor_takes():
    class Inherits(MetaLearner):
        def inner_loop(self, meta, support, steps):
            yield from ()

    assert list(inspect.signature(Inherits).parameters)[:3] == ["model", "loss_fn", "inner_lr"]


def test_learners_are_copied_and_pickled(tmp_path):
    learner = HeadOnly(MLP(8, 3), nn.CrossEntropyLoss(), inner_lr=0.2)
    for copied in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert torch.equal(outputs(copied), outputs(learner))
        assert HeadOnly.load_from_checkpoint(save(copied, tmp_path)).inner_lr == 0.2


def test_a_model_changed_after_it_was_given_is_asked_for(tmp_path):
    def learner():
        return MAML(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))

    other, hooked = learner(), learner()
    other.model[1] = nn.Tanh()
    hooked.model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    for changed_later in (other, hooked):
        path = save(changed_later, tmp_path)
        with pytest.raises(ValueError, match="model=Sequential, which was changed later, .*pass model=..."):
            MAML.load_from_checkpoint(path)
        loaded = MAML.load_from_checkpoint(path, model=copy.deepcopy(changed_later.model))
        assert torch.equal(outputs(loaded), outputs(changed_later))
    frozen_later = learner()
    frozen_later.freeze()
    MAML.load_from_checkpoint(save(frozen_later.double().train(), tmp_path))


def test_a_loss_that_a_class_chooses_itself_is_described(tmp_path):
    path = save(Closed(), tmp_path)
    assert torch.load(path)["meta_learner_arguments"] == {"loss_fn": "CrossEntropyLoss()"}


@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler"])
def test_an_optimizer_that_is_not_kept_is_told(tmp_path, name):
    learner = MAML(MLP(8, 3), **{name: lambda parameters: torch.optim.SGD(parameters, lr=0.1)})
    path = save(learner, tmp_path)
    with pytest.warns(UserWarning, match=rf"trained with {name}=.*<lambda>.*to train on with it, pass {name}=..."):
        MAML.load_from_checkpoint(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MAML.load_from_checkpoint(path, **{name: torch.optim.SGD})


# ---- The learner's class. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [Reptile, ANIL, ImplicitMAML, HeadOnly])
def test_another_learners_checkpoint_is_refused(tmp_path, other):
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    message = rf"saved by lightning_meta\..*\.MAML, and this is .*\.{other.__name__}: load it with its own"
    with pytest.raises(ValueError, match=message):
        other.load_from_checkpoint(path)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    for run in (trainer.fit, trainer.test):
        with pytest.raises(ValueError, match=message):
            run(other(MLP(), nn.MSELoss()), SinusoidDataModule(train_tasks=25, val_tasks=5), ckpt_path=path)


def test_another_learners_checkpoint_loads_where_it_is_allowed(tmp_path):
    learner = MAML(MLP(8, 3), inner_lr=0.2)
    path = save(learner, tmp_path)
    for allowed in (MAML, "lightning_meta.algorithms.gradient.maml.MAML", [MAML]):
        loaded = ANIL.load_from_checkpoint(path, allow=allowed)
        assert type(loaded) is ANIL
        assert torch.equal(loaded.model.layers[0].weight, learner.model.layers[0].weight)


def test_an_abstract_base_loads_what_the_checkpoint_names(tmp_path):
    path = save(ABML(MLP(), nn.MSELoss()), tmp_path)
    assert type(MetaLearner.load_from_checkpoint(path)) is ABML
    assert type(BayesianLearner.load_from_checkpoint(path)) is ABML
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    with pytest.raises(ValueError, match="BayesianLearner is abstract"):
        BayesianLearner.load_from_checkpoint(path)
    with pytest.raises(ValueError, match="saved by os.system: load it with that class"):
        MetaLearner.load_from_checkpoint(changed(path, __meta_learner_class="os.system"))


def test_a_scripts_own_class_is_known_by_its_name(tmp_path):
    path = save(HeadOnly(MLP(8, 3)), tmp_path)
    loaded = HeadOnly.load_from_checkpoint(changed(path, __meta_learner_class="__main__.HeadOnly"))
    assert loaded.adapted_names == ("layers.4.weight", "layers.4.bias")
    with pytest.raises(ValueError, match="saved by __main__.Other"):
        HeadOnly.load_from_checkpoint(changed(path, __meta_learner_class="__main__.Other"))


def test_a_checkpoint_without_a_class_loads_with_a_warning(tmp_path):
    path = save(MAML(MLP(8, 3)), tmp_path)
    content = torch.load(path)
    del content["meta_learner_class"]
    torch.save(content, path)
    with pytest.warns(UserWarning, match="does not name its learner's class"):
        MAML.load_from_checkpoint(path)


def test_keeping_a_large_model_takes_neither_memory_nor_random_numbers():
    model = nn.Sequential(nn.Linear(8, 20_000, device="meta"), nn.Linear(20_000, 50_000, device="meta"))
    before = torch.get_rng_state()
    assert object_text.to_text(model)["modules"]["1"]["init_args"]["out_features"] == 50_000  # 4 GB, were it built
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_a_method_of_the_class():
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        MAML(MLP(), nn.MSELoss()).load_from_checkpoint("nowhere.ckpt")


# ---- No code. -----------------------------------------------------------------------------------------------


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


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """The file that any of the payloads would make, and a pickle and a program that would make it too."""
    file = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(f"open({str(file)!r}, 'w')\nModel = loss = instantiate = print\n")
    (tmp_path / "pickled.pt").write_bytes(pickle.dumps(Evil(file)))
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    assert not file.exists()
    assert "evil_module" not in sys.modules


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


@pytest.mark.parametrize("allow", [f"{__name__}.Own", [f"{__name__}.Own"], Own])
def test_classes_load_where_they_are_allowed_by_name(tmp_path, allow):
    text = {"class_path": f"{__name__}.Own", "init_args": {"in_features": 8, "out_features": 3}}
    learner = MAML(Own(8, 3))
    path = changed(save(learner, tmp_path), model=text)
    with pytest.raises(ValueError, match=rf"model='{__name__}.Own' .* refused.*: pass model=..., or, if you trust"):
        MAML.load_from_checkpoint(path)
    loaded = MAML.load_from_checkpoint(path, allow=allow)
    assert type(loaded.model) is Own
    assert torch.equal(outputs(loaded), outputs(learner))
    with pytest.raises(ValueError, match="loss_fn=.* refused"):
        MAML.load_from_checkpoint(changed(path, loss_fn=text | {"class_path": "os.system"}), allow=allow)


def test_a_users_class_given_to_the_command_line_must_be_allowed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model=MAML", f"--model.model={__name__}.Own", "--model.loss_fn=torch.nn.MSELoss"]
    arguments += ["--model.model.in_features=1", "--model.model.out_features=1", "--model.optimizer=torch.optim.SGD"]
    arguments += [
        "--model.optimizer.lr=0.125",
        "--data=SinusoidDataModule",
        "--data.train_tasks=25",
        "--data.val_tasks=5",
    ]
    arguments += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    cli = main(["fit", *arguments, "--trainer.enable_model_summary=false"])
    path = cli.trainer.checkpoint_callback.best_model_path
    with pytest.raises(ValueError, match=rf"model='{__name__}.Own' .* allow=\('{__name__}.Own',\)"):
        MAML.load_from_checkpoint(path)
    loaded = MAML.load_from_checkpoint(path, allow=(f"{__name__}.Own",))
    assert torch.equal(loaded.model.weight, cli.model.model.weight)
    assert loaded.configure_optimizers().defaults["lr"] == 0.125
    again = MAML.load_from_checkpoint(save(loaded, tmp_path), model=Own(1, 1))  # what was built is kept in turn
    assert again.configure_optimizers().defaults["lr"] == 0.125


def own_loss(output, target):
    return nn.functional.cross_entropy(output, target)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "binary_cross_entropy_with_logits", "huber_loss"])
def test_torchs_loss_functions_are_kept(tmp_path, name):
    function = getattr(nn.functional, name)
    assert MAML.load_from_checkpoint(save(MAML(MLP(8, 3), function), tmp_path)).loss_fn is function
    path = changed(save(MAML(MLP(8, 3)), tmp_path), loss_fn=f"torch.nn.functional.{name}")  # as the command line does
    assert MAML.load_from_checkpoint(path).loss_fn is function


def test_allowed_functions_load_and_allowed_classes_must_fit(tmp_path):
    for name in (f"{__name__}.own_loss", "torch.nn.functional.softmax", "torch.nn.functional.torch.load"):
        path = changed(save(MAML(MLP(8, 3)), tmp_path), loss_fn=name)
        with pytest.raises(ValueError, match=f"loss_fn='{name}' .* refused"):
            MAML.load_from_checkpoint(path)
    path = changed(path, loss_fn=f"{__name__}.own_loss")
    assert MAML.load_from_checkpoint(path, allow=f"{__name__}.own_loss").loss_fn is own_loss
    path = changed(
        save(MAML(MLP(8, 3)), tmp_path), model={"class_path": "subprocess.Popen", "init_args": {"args": "ls"}}
    )
    with pytest.raises(ValueError, match=r"model='subprocess.Popen' .* refused"):
        MAML.load_from_checkpoint(path, allow="subprocess.Popen")
    with pytest.raises(ValueError, match="cannot be imported"):
        MAML.load_from_checkpoint(changed(path, model={"class_path": "no.such.Model"}), allow="no.such.Model")


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


# ---- Files. -------------------------------------------------------------------------------------------------


def test_streams_addresses_and_plain_paths_load(tmp_path, monkeypatch):
    learner = MAML(MLP(8, 3))
    path = save(learner, tmp_path)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, target: shutil.copy(path, target))
    for source in (path, str(path), f"file://{path}", io.BytesIO(path.read_bytes()), "http://host/learner.ckpt"):
        assert torch.equal(outputs(MAML.load_from_checkpoint(source)), outputs(learner))
    with path.open("rb") as file:
        assert torch.equal(outputs(MAML.load_from_checkpoint(file)), outputs(learner))


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_told(tmp_path, kept):
    path = save(MAML(MLP(8, 3)), tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    with pytest.raises(RuntimeError, match="learner.ckpt cannot be read: it was cut short or is no checkpoint"):
        MAML.load_from_checkpoint(path)
    with pytest.raises(RuntimeError, match="cannot be read: it was cut short"):
        MAML.load_from_checkpoint(io.BytesIO(path.read_bytes()))


def test_a_flipped_bit_never_loads_as_something_else(tmp_path):
    """Flips that load anyway, in names of archive members' padding and the like, leave every value as it is."""
    path = save(MAML(MLP(hidden=(8,)), nn.MSELoss(), inner_lr=0.02), tmp_path)
    whole, content = torch.load(path), path.read_bytes()
    draw, refused = random.Random(0), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            flipped = bytearray(content)
            flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            try:
                loaded = MAML.load_from_checkpoint(io.BytesIO(bytes(flipped)))
            except (RuntimeError, pickle.UnpicklingError):
                refused += 1
                continue
            assert loaded.inner_lr == 0.02
            assert all(torch.equal(value, whole["state_dict"][key]) for key, value in loaded.state_dict().items())
    assert refused > 10


def test_flipped_weights_are_refused_by_the_trainer_too(tmp_path):
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    content, weights = path.read_bytes(), torch.load(path)["state_dict"]["model.layers.0.weight"].numpy().tobytes()
    assert content.count(weights) == 1
    path.write_bytes(content.replace(weights, bytes([weights[0] ^ 1]) + weights[1:]))
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    with pytest.raises(RuntimeError, match="it is damaged, .* differs from its checksum; take an earlier one"):
        trainer.test(MAML(MLP(), nn.MSELoss()), SinusoidDataModule(test_tasks=5), ckpt_path=path)
    torch.load(path)  # torch does not see it


def test_a_compressed_file_is_refused_unread(tmp_path):
    path = save(MAML(MLP(), nn.MSELoss()), tmp_path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    with pytest.raises(RuntimeError, match="it is compressed, as no checkpoint is"):
        MAML.load_from_checkpoint(tmp_path / "bomb.ckpt")


def test_other_content_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(RuntimeError, match="holds a list and is no checkpoint"):
        MAML.load_from_checkpoint(tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="not saved by a TaskLearner"):
        MAML.load_from_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(FileNotFoundError):
        MAML.load_from_checkpoint(tmp_path / "nowhere.ckpt")


def test_arguments_from_a_file_count_and_run_nothing(tmp_path, trap):
    path = save(MAML(MLP(8, 3), inner_lr=0.3), tmp_path)
    (tmp_path / "a.yaml").write_text(
        "inner_lr: 0.5\nmodel: {class_path: lightning_meta.MLP, init_args: {in_features: 8, out_features: 3}}"
    )
    assert MAML.load_from_checkpoint(path, hparams_file=tmp_path / "a.yaml").inner_lr == 0.5
    (tmp_path / "b.yaml").write_text(f"model: {{class_path: os.system, init_args: {{command: touch {trap}}}}}")
    with pytest.raises(ValueError, match="model='os.system' .* refused"):
        MAML.load_from_checkpoint(path, hparams_file=tmp_path / "b.yaml")


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


def deep(levels):
    value = ["a"]
    for _ in range(levels):
        value = [value]
    return value


def doubled(levels):
    value = ["a"]
    for _ in range(levels):
        value = [value, value]
    return value


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "entries",
    [
        {"inner_lr": doubled(60)},
        {"inner_lr": deep(200)},
        {"inner_lr": endless()},
        {"__meta_learner_class": doubled(60)},
        {"__meta_learner_arguments": {"loss_fn": doubled(60)}},
        {"__more": {"in": {"a dictionary": doubled(60)}}},
        {"__more": torch.zeros(1).expand(100_000, 100_000)},
    ],
)
def test_content_without_end_is_refused(tmp_path, entries, monkeypatch):
    monkeypatch.setattr(checkpoint_content, "MOST_VALUES", 20_000)  # to reach it sooner
    path = changed(save(MAML(MLP(8, 3)), tmp_path), **entries)
    with pytest.raises(RuntimeError, match="changed.ckpt is refused: it"):
        MAML.load_from_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state_dict", None),
        ("state_dict", {1: torch.ones(1)}),
        ("hyper_parameters", [1]),
        ("callbacks", [1]),
        ("meta_learner_class", ["a"]),
        ("meta_learner_left_out", {"model": 3}),
        ("meta_learner_arguments", 5),
        ("meta_learner_random_seed", "%99999999999d"),
        ("meta_learner_random_seed", True),
        ("meta_learner_gradients", "lost"),
        ("meta_learner_recordings", [1]),
    ],
)
def test_entries_of_other_types_are_told(tmp_path, name, value):
    path = changed(save(MAML(MLP(8, 3)), tmp_path), **{f"__{name}": value})
    with pytest.raises(ValueError, match=f"the checkpoint's {name} "):
        MAML.load_from_checkpoint(path)


@pytest.mark.parametrize("gradients", [{}, {"gradients": 3}, {"gradients": {"model.layers.0.weight": torch.ones(3)}}])
def test_gradients_of_other_shapes_are_told(tmp_path, gradients):
    path = changed(save(MAML(MLP(), nn.MSELoss()), tmp_path), __meta_learner_gradients=gradients)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="meta_learner_gradients are no tensors"):
        trainer.fit(MAML(MLP(), nn.MSELoss()), SinusoidDataModule(train_tasks=25, val_tasks=5), ckpt_path=path)


@pytest.mark.parametrize(
    "model",
    [
        {"class_path": "torch.nn.Linear", "init_args": {"in_features": 10**8, "out_features": 10**8}},
        {"class_path": "lightning_meta.MLP", "init_args": {"hidden": [10**8, 10**8]}},
    ],
)
def test_a_model_larger_than_the_file_is_not_built(tmp_path, model):
    path = changed(save(MAML(MLP(8, 3)), tmp_path), model=model)
    with pytest.raises(ValueError, match="has more weights than the checkpoint holds: pass model=..."):
        MAML.load_from_checkpoint(path)


def test_a_file_that_readers_could_read_differently_is_refused(tmp_path):
    path = save(MAML(MLP(8, 3)), tmp_path)
    whole, old = path.read_bytes(), io.BytesIO()
    torch.save(torch.load(path), old, _use_new_zipfile_serialization=False)
    comment = whole[:-2] + b"\4\0junk"
    for content in (old.getvalue() + whole, whole + b"junk", whole + whole, b"junk" + whole, comment):
        with pytest.raises(RuntimeError, match="it was cut short or is no checkpoint"):
            MAML.load_from_checkpoint(io.BytesIO(content))
    stream = io.BytesIO(b"junk" + whole)
    stream.seek(4)
    assert isinstance(MAML.load_from_checkpoint(stream), MAML)


def test_a_bytearray_is_refused_unbuilt(tmp_path):
    pickled = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R."
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "bytes.ckpt"))
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_end_of_file()
    with pytest.raises(RuntimeError, match="it holds a bytearray"):
        MAML.load_from_checkpoint(tmp_path / "bytes.ckpt")


def test_a_learner_with_its_own_setup_reads_checkpoints_with_care(tmp_path):
    class Own(MAML):
        def setup(self, stage):
            pass

    path = save(Own(MLP(), nn.MSELoss()), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    with pytest.raises(RuntimeError, match="it was cut short"):
        trainer.test(Own(MLP(), nn.MSELoss()), SinusoidDataModule(test_tasks=5), ckpt_path=path)


def test_files_of_arguments_that_cannot_be_read_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_content, "MOST_VALUES", 20_000)  # to reach it sooner
    path = save(MAML(MLP(8, 3)), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file hparams_file='.*nowhere.yaml'"):
        MAML.load_from_checkpoint(path, hparams_file=tmp_path / "nowhere.yaml")
    aliases = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    for text, fault in (
        ("a: [", "cannot be read"),
        ("[1, 2]", "holds no arguments by name"),
        ("inner_lr: !!python/module:os", "cannot be read"),
        (f"a0: &a0 [x, x]\n{aliases}inner_lr: *a39\n", "holds no arguments by name: it holds more than"),
    ):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ValueError, match=f"hparams_file='.*a.yaml' {fault}"):
            MAML.load_from_checkpoint(path, hparams_file=tmp_path / "a.yaml")


def test_a_scripts_class_is_not_this_packages_of_the_same_name(tmp_path):
    path = changed(save(MAML(MLP(8, 3)), tmp_path), __meta_learner_class="__main__.MAML")
    with pytest.raises(ValueError, match=r"saved by __main__.MAML, and this is lightning_meta\..*\.MAML"):
        MAML.load_from_checkpoint(path)
