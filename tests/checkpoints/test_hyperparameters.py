"""What a checkpoint keeps of a learner's arguments, and builds again."""

from __future__ import annotations

import copy
import enum
import functools
import inspect
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_meta import MAML, MLP, AmortizedMAML, MetaLearner
from lightning_meta.inner.update_rules import Momentum
from lightning_meta.models.set_encoder import SetEncoder
from tests.checkpoints.saved import HeadOnly, Own, outputs, save


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
