"""Low-rank adapters, in a model and around it, against a loop in which they are written out."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import ANIL, MAML, MLP, Episode, LowRankAdapted, add_low_rank_adapters, collate_episodes
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")
ADAPTERS = [f"0.parametrizations.weight.0.low_rank_{letter}" for letter in "ab"]


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def adapted(**options):
    model = network()
    add_low_rank_adapters(model, **{"rank": 2, "alpha": 3.0, "targets": "0", **options})
    return model


def tasks():
    """A batch of three tasks, and the labels of each set."""
    labels = torch.arange(6) % 3
    return collate_episodes([Episode(torch.randn(6, 4), labels, torch.randn(6, 4), labels) for _ in range(3)]), labels


def trainable(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_the_model_is_the_same_at_first_and_its_weight_has_an_update_of_low_rank():
    model, x = network(), torch.randn(5, 4)
    before, weight = model(x), model[0].weight.detach().clone()
    add_low_rank_adapters(model, rank=2, alpha=3.0, targets=["0"])
    torch.testing.assert_close(model(x), before)
    update = model[0].parametrizations.weight[0]
    assert (update.low_rank_a.shape, update.low_rank_b.shape) == ((2, 4), (6, 2))
    assert update.low_rank_a.count_nonzero() == 8
    with torch.no_grad():
        update.low_rank_b.normal_()
    torch.testing.assert_close(model[0].weight, weight + 3.0 / 2 * update.low_rank_b @ update.low_rank_a)


def test_all_else_is_frozen_but_what_is_named():
    assert trainable(adapted()) == ADAPTERS
    assert set(trainable(adapted(trained="2.*"))) == {*ADAPTERS, "2.weight", "2.bias"}
    assert len(trainable(adapted(targets="*"))) == 4


@pytest.mark.parametrize("compile", [None, False])
def test_maml_has_the_meta_gradient_of_a_loop(compile):
    model = adapted(trained="2.bias")
    with torch.no_grad():
        model[0].parametrizations.weight[0].low_rank_b.normal_()
    batch, labels = tasks()
    learner = MAML(model, nn.CrossEntropyLoss(), inner_lr=0.3, inner_steps=2, compile=compile)
    assert set(learner.adapted_names) == {*ADAPTERS, "2.bias"}
    loss, found = meta_gradient(learner, batch)

    names = [*ADAPTERS, "2.bias"]
    start = [dict(model.named_parameters())[name].detach().clone().requires_grad_() for name in names]
    original, bias, last = model[0].parametrizations.weight.original, model[0].bias, model[2].weight

    def task_loss(values, x):
        a, b, last_bias = values
        hidden = torch.tanh(F.linear(x, original.detach() + 1.5 * b @ a, bias.detach()))
        return F.cross_entropy(F.linear(hidden, last.detach(), last_bias), labels)

    losses = []
    for i in range(3):
        values = start
        for _ in range(2):
            slopes = torch.autograd.grad(task_loss(values, batch.support_x[i]), values, create_graph=True)
            values = [v - 0.3 * s for v, s in zip(values, slopes, strict=True)]
        losses.append(task_loss(values, batch.query_x[i]))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected.detach())
    assert_same(found, dict(zip(names, torch.autograd.grad(expected, start), strict=True)))


def test_patterns_may_name_what_adapts():
    model = adapted(targets="*")
    assert MAML(model, adapt=["2.*low_rank*"]).adapted_names == (
        "2.parametrizations.weight.0.low_rank_a",
        "2.parametrizations.weight.0.low_rank_b",
    )
    assert len(ANIL(adapted(trained="2.*")).adapted_names) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, "alpha=0.0"),
        ({"targets": "query"}, "targets: the pattern 'query' matches none of 0, 2"),
        ({"trained": "head.*"}, "trained: the pattern 'head.*' matches none of 0.weight"),
    ],
)
def test_arguments_that_do_not_fit_change_nothing(options, message):
    model = network()
    with pytest.raises(ValueError, match=message):
        add_low_rank_adapters(model, **options)
    assert len(trainable(model)) == 4
    assert list(model.state_dict()) == list(network().state_dict())


def test_adapters_are_added_once():
    model = adapted()
    with pytest.raises(ValueError, match="'0' is parametrized already"):
        add_low_rank_adapters(model, targets="0")


@pytest.mark.parametrize("compile", [None, False])
def test_a_wrapped_model_has_the_meta_gradient_of_a_loop(compile):
    """The updates alone adapt, all is meta-learned."""
    model = LowRankAdapted(network(), rank=2, alpha=3.0, trained="*")
    with torch.no_grad():
        for update in model.updates.values():
            update.low_rank_b.normal_()
    batch, labels = tasks()
    learner = MAML(model, nn.CrossEntropyLoss(), inner_lr=0.3, inner_steps=2, adapt=["updates.*"], compile=compile)
    names = [f"updates.{layer}.low_rank_{letter}" for layer in "02" for letter in "ab"]
    assert list(learner.adapted_names) == names
    for _ in range(12 if compile is None else 1):
        loss, found = meta_gradient(learner, batch)
    p = {name: own.detach().clone().requires_grad_() for name, own in model.named_parameters()}

    def task_loss(values, x):
        for layer in ("0", "2"):
            update = values[f"updates.{layer}.low_rank_b"] @ values[f"updates.{layer}.low_rank_a"]
            x = F.linear(x, values[f"model.{layer}.weight"] + 1.5 * update, values[f"model.{layer}.bias"])
            x = torch.tanh(x) if layer == "0" else x
        return F.cross_entropy(x, labels)

    losses = []
    for i in range(3):
        values = dict(p)
        for _ in range(2):
            slopes = torch.autograd.grad(
                task_loss(values, batch.support_x[i]), [values[n] for n in names], create_graph=True
            )
            values |= {n: values[n] - 0.3 * s for n, s in zip(names, slopes, strict=True)}
        losses.append(task_loss(values, batch.query_x[i]))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected.detach())
    assert_same(found, dict(zip(p, torch.autograd.grad(expected, list(p.values())), strict=True)))


def test_a_wrapped_model_computes_what_adapters_in_it_do():
    model, x = network(), torch.randn(5, 4)
    wrapped = LowRankAdapted(model, rank=2, alpha=3.0, targets=["2"], trained=["0.*"])
    torch.testing.assert_close(wrapped(x), model(x))
    inside = copy.deepcopy(model)
    add_low_rank_adapters(inside, rank=2, alpha=3.0, targets=["2"], trained=["0.*"])
    with torch.no_grad():
        for name in ("low_rank_a", "low_rank_b"):
            value = getattr(inside[2].parametrizations.weight[0], name)
            getattr(wrapped.updates["2"], name).copy_(value.normal_())
    torch.testing.assert_close(wrapped(x), inside(x))
    names = {name.removeprefix("model.") for name in trainable(wrapped)}
    assert names == {"0.weight", "0.bias", "updates.2.low_rank_a", "updates.2.low_rank_b"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.layer = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.layer.weight = self.words.weight

    def forward(self, ids):
        return self.layer(self.words(ids))


def test_a_weight_in_two_places_is_updated_in_the_layer_alone():
    model, ids = Tied(), torch.arange(4)
    wrapped = LowRankAdapted(model, rank=2, alpha=2.0)
    update = wrapped.updates["layer"]
    with torch.no_grad():
        update.low_rank_b.normal_()
    words = model.words.weight
    torch.testing.assert_close(wrapped(ids), words @ (words + update.low_rank_b @ update.low_rank_a).mT)


def test_a_learner_of_a_wrapped_model_loads_without_its_model(tmp_path):
    model = LowRankAdapted(MLP(4, 3, hidden=[6]), rank=2, targets=["layers.2"], trained=["layers.0.*"])
    learner = MAML(model, nn.CrossEntropyLoss(), adapt=["updates.*"], inner_lr=0.3).eval()
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(tmp_path / "learner.ckpt")
    loaded = MAML.load_from_checkpoint(tmp_path / "learner.ckpt").eval()
    assert type(loaded.model) is LowRankAdapted
    assert trainable(loaded.model) == trainable(model)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    assert torch.equal(loaded.adapt(x, y)(x), learner.adapt(x, y)(x))


def test_a_model_changed_inside_its_wrapper_is_not_kept():
    model = LowRankAdapted(network(), rank=2)
    assert "model" in MAML(model).hparams
    model.model[1] = nn.Sigmoid()
    assert "model" in MAML(model).hparams
    model.model[0].register_forward_hook(lambda *arguments: None)
    assert "model" not in MAML(model).hparams


def test_a_layer_alone_cannot_be_wrapped():
    with pytest.raises(ValueError, match=r"model=Linear.* is itself the layer"):
        LowRankAdapted(nn.Linear(4, 3))
