"""Weights and rates of learn2learn's wrappers in our learners, and back; what has no counterpart is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from lightning_meta import ANIL, BOIL, MAML, MetaSGD, Reptile
from lightning_meta.inner import Adam, FirstOrder
from lightning_meta.inner.names import key_of
from lightning_meta.interop.learn2learn import from_learn2learn, to_learn2learn
from tests.interop.learn2learn import stand_ins


@pytest.fixture(params=["stand_in", "learn2learn"])
def wrappers(request):
    if request.param == "stand_in":
        return stand_ins
    return request.getfixturevalue("l2l").algorithms


@pytest.fixture
def scale(wrappers, request):
    return stand_ins.Scale if wrappers is stand_ins else request.getfixturevalue("l2l").nn.Scale


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def rates(learner):
    """The learned rates by the names of the parameters."""
    return {name: learner.inner_rates.learned_rates[key_of(name)] for name in learner.adapted_names}


@pytest.mark.parametrize("first_order", [False, True])
def test_maml(wrappers, first_order):
    wrapper = wrappers.MAML(mlp(), lr=0.3, first_order=first_order)
    learner = from_learn2learn(wrapper, nn.MSELoss(), inner_steps=4, eval_inner_steps=7, task_chunk_size=2)
    assert type(learner) is MAML
    assert learner.model is wrapper.module
    assert (learner.inner_lr, learner.inner_steps, learner.eval_inner_steps) == (0.3, 4, 7)
    assert learner.first_order == first_order
    assert learner.adapted_names == tuple(name for name, _ in wrapper.module.named_parameters())


def test_meta_sgd(wrappers):
    wrapper = wrappers.MetaSGD(mlp(), lr=0.3)
    with torch.no_grad():
        for number, rate in enumerate(wrapper.lrs):
            rate.add_(number)
    learner = from_learn2learn(wrapper)
    assert type(learner) is MetaSGD
    assert all(a is b for a, b in zip(rates(learner).values(), wrapper.lrs, strict=True))
    assert {name: float(rate.detach().mean()) for name, rate in rates(learner).items()} == pytest.approx(
        {"0.weight": 0.3, "0.bias": 1.3, "2.weight": 2.3, "2.bias": 3.3}
    )


def test_adapts_with_the_rates_of_each_element(wrappers, float64):
    """One step in closed form, with rates that differ."""
    wrapper = wrappers.MetaSGD(nn.Linear(2, 1, bias=False), lrs=nn.ParameterList([torch.tensor([[0.5, 0.0]])]))
    start = wrapper.module.weight.detach().clone()
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    task = from_learn2learn(wrapper, nn.MSELoss()).adapt(x, y)
    slope = 2 * (x @ start.T - y) * x
    query = torch.eye(2)
    torch.testing.assert_close(task(query), query @ (start - slope * torch.tensor([[0.5, 0.0]])).T)


def partly_normalized():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


@pytest.mark.parametrize("options", [{"adapt": "head"}, {"batch_norm_per_step": True}], ids=str)
def test_only_rates_of_what_adapts_are_kept(wrappers, options):
    """As in a learner that is made anew, so that checkpoints load."""
    learner = from_learn2learn(wrappers.MetaSGD(partly_normalized(), lr=0.3), **options)
    anew = MetaSGD(partly_normalized(), inner_lr=0.3, **options)
    anew.load_state_dict(learner.state_dict())
    assert [p.shape for p in anew.parameters()] == [p.shape for p in learner.parameters()]


def test_head_behind_features(wrappers):
    features, head = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
    )
    learner = from_learn2learn(wrappers.MAML(head, lr=0.2), features=features)
    assert learner.adapted_names == ("head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias")
    assert [name for name, _ in learner.model.named_parameters()][:2] == ["features.0.weight", "features.0.bias"]
    x = torch.randn(5, 3)
    assert torch.equal(learner.model(x), head(features(x)))


def test_its_lightning_modules_hold_wrappers(l2l):
    """As docs/how-to/coming-from-learn2learn.md shows."""
    maml = l2l.algorithms.LightningMAML(mlp(), loss=nn.MSELoss(), adaptation_lr=0.3, adaptation_steps=4)
    learner = from_learn2learn(maml.model, maml.loss, maml.adaptation_steps)
    assert (learner.inner_lr, learner.inner_steps, learner.loss_fn) == (0.3, 4, maml.loss)
    anil = l2l.algorithms.LightningANIL(nn.Linear(3, 4), nn.Linear(4, 5), adaptation_lr=0.3)
    learner = from_learn2learn(anil.classifier, anil.loss, anil.adaptation_steps, features=anil.features)
    assert learner.adapted_names == ("head.weight", "head.bias")


def test_gbml_without_transform(wrappers):
    learner = from_learn2learn(wrappers.GBML(mlp(), transform=lambda p: None, lr=0.3, first_order=True))
    assert type(learner) is MAML
    assert (learner.inner_lr, learner.first_order) == (0.3, True)


def test_gbml_with_scales(wrappers, scale):
    each = from_learn2learn(wrappers.GBML(mlp(), transform=lambda p: scale(p.shape, alpha=0.5), lr=0.2))
    assert type(each) is MetaSGD
    for name, rate in rates(each).items():
        torch.testing.assert_close(rate.detach(), torch.full_like(each.model.get_parameter(name), 0.1))
    whole = from_learn2learn(wrappers.GBML(mlp(), transform=lambda p: scale((1,), alpha=0.5), lr=0.2))
    assert type(whole) is MAML
    assert [rate.shape for rate in rates(whole).values()] == [torch.Size([])] * 4
    assert float(rates(whole)["0.bias"].detach()) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: w.GBML(mlp(), transform=lambda p: nn.Linear(1, 1)), "transform=Linear changes gradients"),
        (lambda w: w.GBML(mlp(), lambda p: None, adapt_transform=True), "adapt_transform=True adapts the transform"),
        (lambda w: w.MAML(mlp(), lr=nn.Parameter(torch.tensor(0.1))), "is not a number: a learned rate"),
        (lambda w: w.MetaSGD(mlp(), lrs=[torch.ones(())] * 4), "the wrapper's rate of 0.weight is not trainable"),
        (lambda w: w.MetaSGD(mlp(), lrs=nn.ParameterList([torch.ones(())])), "1 rates, and its module 4 parameters"),
        (lambda w: w.MetaSGD(mlp(), lrs=nn.ParameterList([torch.ones(2)] * 4)), "must all be scalars, or all have"),
        (lambda w: w.MetaSGD(in_two_places()), r"\['1.0.bias', '1.0.weight'\] are other names"),
        (lambda w: w.MAML(mlp(), lr=0.0), "the wrapper's lr=0.0 must be a positive number"),
        (lambda w: type("Own", (w.MAML,), {})(mlp(), lr=0.1), "and not of a derived class"),
        (lambda w: MAML(mlp()), "must be MAML, MetaSGD or GBML of learn2learn"),
    ],
)
def test_wrappers_without_counterpart_are_refused(wrappers, make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        from_learn2learn(make(wrappers))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_lr": 0.3}, "inner_lr=0.3: the wrapper determines it; leave it out, or change the wrapper"),
        ({"first_order": True}, "first_order=True: the wrapper determines it"),
        ({"learned_rates": "tensor"}, "learned_rates='tensor': the wrapper determines it"),
        ({"features": nn.Linear(3, 3), "adapt": "all"}, "adapt='all' adapts features, but only the head can"),
    ],
)
def test_options_that_the_wrapper_determines_are_refused(wrappers, options, message):
    with pytest.raises(ValueError, match=message):
        from_learn2learn(wrappers.MetaSGD(mlp(), lr=0.1), **options)


def test_its_lightning_modules_are_refused_by_what_to_pass(l2l):
    maml, anil = l2l.algorithms.LightningMAML(mlp()), l2l.algorithms.LightningANIL(nn.Linear(3, 4), nn.Linear(4, 5))
    with pytest.raises(TypeError, match=r"LightningMAML .*pass module.model, module.loss and module.adaptation_steps$"):
        from_learn2learn(maml)
    with pytest.raises(TypeError, match=r"pass module.classifier, .* and features=module.features$"):
        from_learn2learn(anil)


def test_mixed_scales_are_refused(wrappers, scale):
    def some(parameter):
        return scale(parameter.shape, alpha=1.0) if parameter.dim() == 1 else None

    with pytest.raises(ValueError, match="transform gives None for 0.weight and a module for others"):
        from_learn2learn(wrappers.GBML(mlp(), transform=some))

    def sizes(parameter):
        return scale(parameter.shape if parameter.dim() == 1 else (1,), alpha=1.0)

    with pytest.raises(ValueError, match="as large as the parameters, or all 1"):
        from_learn2learn(wrappers.GBML(mlp(), transform=sizes))


def test_a_clone_is_refused(l2l):
    with pytest.raises(ValueError, match="wrapper is a clone"):
        from_learn2learn(l2l.algorithms.MAML(mlp(), lr=0.1).clone())


@pytest.mark.parametrize(
    "learner",
    [
        MAML(mlp(), inner_lr=0.3, first_order=True),
        MAML(mlp(), inner_lr=0.3, checkpoint_inner_loop=True),
        MetaSGD(mlp(), inner_lr=0.3),
        MAML(mlp(), inner_lr=0.3, learned_rates="tensor", first_order=True),
    ],
    ids=["first_order", "checkpointed", "element", "tensor"],
)
def test_there_and_back(l2l, learner):
    wrapper = to_learn2learn(learner)
    assert type(wrapper) is (l2l.algorithms.MAML if learner.inner_rates.learned == "none" else l2l.algorithms.MetaSGD)
    back = from_learn2learn(wrapper, learner.loss_fn, learner.inner_steps)
    assert back.model is learner.model
    assert (back.first_order, back.inner_rates.learned) == (learner.first_order, learner.inner_rates.learned)
    found, expected = dict(back.named_parameters()), dict(learner.named_parameters())
    assert found.keys() == expected.keys()
    assert all(found[name] is parameter for name, parameter in expected.items())
    assert back.inner_lr == pytest.approx(0.3)


@pytest.mark.parametrize("learned", ["none", "element"])
def test_a_head_there_and_back(l2l, learned):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    features, head = to_learn2learn(MAML(model, adapt="head", inner_lr=0.3, learned_rates=learned))
    assert list(features) == [model[0], model[1]]
    assert head.module is model[2]
    back = from_learn2learn(head, features=features)
    assert back.adapted_names == ("head.weight", "head.bias")
    again = to_learn2learn(back)
    assert again.features is features
    assert again.head.module is head.module
    assert to_learn2learn(ANIL(model)).head.module is model[2]


@pytest.mark.parametrize("algorithm", ["MAML", "MetaSGD"])
def test_a_head_behind_frozen_features_there_and_back(l2l, algorithm):
    features, head = nn.Linear(3, 4).requires_grad_(False), getattr(l2l.algorithms, algorithm)(nn.Linear(4, 2), lr=0.1)
    back = to_learn2learn(from_learn2learn(head, features=features))
    assert type(back.head) is type(head)
    assert back.features is features
    assert back.head.module is head.module


@pytest.mark.parametrize("first", [nn.Linear(3, 4).requires_grad_(False), nn.Flatten()], ids=["frozen", "empty"])
def test_a_chosen_head_is_always_apart_from_its_features(l2l, first):
    model = nn.Sequential(first, nn.Linear(4, 2))
    for learner in (ANIL(model), MetaSGD(model, adapt="head")):
        features, head = to_learn2learn(learner)
        assert features is first
        assert head.module is model[1]
    assert to_learn2learn(MAML(model)).module is model


def tied():
    features, head = nn.Linear(3, 3), nn.Linear(3, 3)
    head.weight = features.weight
    return features, head


def test_a_head_tied_to_the_features_is_refused(wrappers):
    features, head = tied()
    with pytest.raises(ValueError, match=r"features and head share \['weight'\] of the head: untie them"):
        from_learn2learn(wrappers.MAML(head, lr=0.1), features=features)


def test_a_head_tied_to_the_features_is_refused_on_the_way_back(l2l):
    with pytest.raises(ValueError, match=r"features and head share \['weight'\] of the head: untie them"):
        to_learn2learn(ANIL(nn.Sequential(*tied())))


def test_frozen_parameters_stay_as_they_are(l2l):
    model = mlp()
    model[0].requires_grad_(False)
    wrapper = to_learn2learn(MAML(model, nn.MSELoss()))
    clone = wrapper.clone()
    clone.adapt(clone(torch.randn(4, 3)).square().mean())
    assert torch.equal(clone.module[0].weight, model[0].weight)
    assert not torch.equal(clone.module[2].weight, model[2].weight)


def in_two_places():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.Sequential(layer))


def normalized():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def frozen():
    model = mlp()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reptile(mlp()), "learner=Reptile has no counterpart"),
        (lambda: BOIL(mlp()), "learner=BOIL has no counterpart"),
        (lambda: MAML(mlp(), learned_rates="tensor_step"), "learned_rates='tensor_step' has no counterpart"),
        (lambda: MAML(mlp(), inner_optimizer=Adam()), "inner_optimizer=Adam"),
        (lambda: MAML(mlp(), meta_gradient=FirstOrder(epochs=3)), "meta_gradient=FirstOrder"),
        (lambda: MAML(mlp(), multi_step_loss_epochs=3), "multi_step_loss_epochs=3 has no counterpart"),
        (
            lambda: MAML(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), batch_norm_per_step=True),
            "batch_norm_per",
        ),
        (
            lambda: MAML(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), batch_statistics="running"),
            "batch_statistics='running' has no counterpart",
        ),
        (lambda: MAML(mlp(), adapt=["0.*"]), "learn2learn adapts whole modules"),
        (lambda: MAML(mlp(), adapt=["2.bias"]), "learn2learn adapts whole modules"),
        (lambda: MetaSGD(frozen()), "cannot adapt a module with frozen parameters"),
        (lambda: MetaSGD(in_two_places()), r"\['1.0.bias', '1.0.weight'\] are other names"),
    ],
)
def test_learners_without_counterpart_are_refused(l2l, make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        to_learn2learn(make())


def test_without_the_package_the_error_names_the_extra_and_the_page(monkeypatch):
    monkeypatch.setitem(sys.modules, "learn2learn", None)
    with pytest.raises(ImportError, match=r"to_learn2learn needs learn2learn .*coming-from-learn2learn"):
        to_learn2learn(MAML(mlp()))
