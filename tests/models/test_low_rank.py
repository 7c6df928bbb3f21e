"""Low-rank adapters, against a loop in which they are written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_meta import ANIL, MAML, Episode, add_low_rank_adapters, collate_episodes
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")
ADAPTERS = [f"0.parametrizations.weight.0.low_rank_{letter}" for letter in "ab"]


def network():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def adapted(**options):
    model = network()
    add_low_rank_adapters(model, **{"rank": 2, "alpha": 3.0, "targets": "0", **options})
    return model


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
    labels = torch.arange(6) % 3
    batch = collate_episodes([Episode(torch.randn(6, 4), labels, torch.randn(6, 4), labels) for _ in range(3)])
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
