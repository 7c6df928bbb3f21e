"""Attentive neural processes against a loop over examples and heads, and torch's distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from lightning_meta import AttentiveNP, collate_episodes
from tests.algorithms.processes.naive import (
    all_gradients,
    class_model,
    class_task,
    examples,
    gaussian_nll,
    pair,
    regression_model,
    tasks,
)
from tests.reference import assert_same

pytestmark = pytest.mark.usefixtures("float64")

SMALL = {"hidden": 6, "layers": 1, "heads": 2, "latents": 3, "compile": False}


def attended(attention, query, keys, values):
    """Multihead attention of one query, head by head and key by key."""
    size, mixed = attention.width // attention.heads, []
    for head in range(attention.heads):
        part = slice(head * size, (head + 1) * size)
        asked = attention.query(query)[part]
        scores = [(asked @ attention.key(key)[part]).item() / math.sqrt(size) for key in keys]
        weights = [math.exp(score - max(scores)) for score in scores]
        own = [w / sum(weights) * attention.value(value)[part] for w, value in zip(weights, values, strict=True)]
        mixed.append(sum(own))
    return attention.mix(torch.cat(mixed))


def encoded(encoder, pairs):
    """The tokens of a set after self-attention."""
    tokens = [encoder.embedding(one) for one in pairs]
    for block in encoder.blocks:
        tokens = [block.attention_norm(t + attended(block.attention, t, tokens, tokens)) for t in tokens]
        tokens = [block.feed_forward_norm(t + block.feed_forward(t)) for t in tokens]
    return tokens


def latent(learner, pairs):
    tokens = encoded(learner.latent_encoder, pairs)
    mean, width = learner.latent_distribution(sum(tokens) / len(tokens)).chunk(2)
    return Normal(mean, 0.1 + 0.9 * torch.sigmoid(width))


def loop_loss(learner, task, noise):
    """The negative evidence bound for each example, with these draws of noise for z."""
    pairs = [pair(learner.model, x, y) for x, y in examples(task)]
    support = len(task.support_x)
    prior, posterior = latent(learner, pairs[:support]), latent(learner, pairs)
    values = encoded(learner.encoder, pairs[:support])
    features = [learner.model[:2](x[None])[0] for x in task.support_x]
    nll = 0
    for draw in noise:
        z = posterior.mean + posterior.stddev * draw
        for x, y in examples(task):
            own = learner.model[:2](x[None])[0]
            if learner.attention:
                keys = [learner.key(one) for one in features]
                r = attended(learner.cross_attention, learner.key(own), keys, values)
            else:
                r = sum(values) / support
            nll += gaussian_nll(learner.model, learner.decoder(torch.cat([own, r, z])), x, y, 0.1) / len(noise)
    return (nll + learner.kl_weight * kl_divergence(posterior, prior).sum()) / len(pairs)


@pytest.mark.parametrize("attention", [True, False])
def test_the_loss_is_that_of_a_loop(attention):
    learner = AttentiveNP(regression_model(), nn.MSELoss(), attention=attention, num_samples=2, kl_weight=0.7, **SMALL)
    task, meta = tasks()[0], dict(learner.named_parameters())
    torch.manual_seed(3)
    found, report = learner.task_loss(meta, task)
    torch.manual_seed(3)
    expected = loop_loss(learner, task, torch.randn(2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(report.loss, found)
    pairs = [pair(learner.model, x, y) for x, y in examples(task)]
    divergence = kl_divergence(latent(learner, pairs), latent(learner, pairs[: len(task.support_x)])).sum()
    torch.testing.assert_close(report.diagnostics["kl"], divergence, rtol=1e-10, atol=1e-12)


def test_gradients_are_finite_differences_of_the_loss():
    learner, task = AttentiveNP(regression_model(), nn.MSELoss(), **SMALL), tasks()[0]
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    torch.manual_seed(3)
    slopes, _ = learner.task_gradient(meta, task)
    for name in (
        "key.layers.0.weight",
        "latent_encoder.embedding.layers.0.weight",
        "encoder.blocks.0.attention.key.weight",
    ):
        direction, losses = torch.randn_like(meta[name]), []
        for sign in (1, -1):
            torch.manual_seed(3)
            losses.append(learner.task_loss({**meta, name: meta[name] + sign * 1e-6 * direction}, task)[0])
        expected = (losses[0] - losses[1]) / 2e-6
        torch.testing.assert_close((slopes[name] * direction).sum(), expected, rtol=1e-5, atol=1e-9)
        assert slopes[name].any()


def test_padding_changes_nothing_in_two_steps():
    """With draws too small to matter, and a divergence whose weight makes up for that."""
    options = {**SMALL, "max_latent_std": 1e-6, "kl_weight": 1e-12}
    learner = AttentiveNP(regression_model(), nn.MSELoss(), **options)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.01)
    for _ in range(2):
        drawn = tasks()
        loss, together = all_gradients(learner, collate_episodes(drawn))
        alone = [all_gradients(learner, collate_episodes([task])) for task in drawn]
        torch.testing.assert_close(loss, torch.stack([own for own, _ in alone]).mean(), rtol=1e-6, atol=1e-6)
        assert_same(together, {n: sum(own[n] for _, own in alone) / len(alone) for n in together}, 1e-4)
        all_gradients(learner, collate_episodes(drawn))
        optimizer.step()


def test_predictions_come_from_the_support_sets_distribution_of_z():
    """The draws have the mean and variance that the prior of z gives them."""
    learner, task = AttentiveNP(regression_model(), nn.MSELoss(), eval_num_samples=20_000, **SMALL), tasks()[0]
    state = learner.adapt_task(dict(learner.named_parameters()), task.support)
    prior = latent(learner, [pair(learner.model, x, y) for x, y in zip(task.support_x, task.support_y, strict=True)])
    torch.testing.assert_close(state.latents.mean(0), prior.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(state.latents.std(0), prior.stddev, rtol=0.03, atol=0)


def test_epistemic_uncertainty_is_the_variance_over_draws():
    learner, task = AttentiveNP(regression_model(), nn.MSELoss(), eval_num_samples=5, **SMALL), tasks()[0]
    adapted = learner.adapt(task.support_x, task.support_y)
    prediction = adapted.predict(task.query_x)
    means = [
        learner.query_samples(
            dict(learner.named_parameters()), adapted.state._replace(latents=z[None]), task.query_x
        ).outputs[0]
        for z in adapted.state.latents
    ]
    torch.testing.assert_close(prediction.epistemic, torch.stack(means).var(0))
    assert (prediction.epistemic > 0).all()
    assert torch.equal(adapted(task.query_x), adapted(task.query_x))  # one task keeps its draws


def test_classes_have_an_epistemic_part():
    task = class_task()
    prediction = AttentiveNP(class_model(), **SMALL).adapt(task.support_x, task.support_y).predict(task.query_x)
    assert prediction.mean.shape == (4, 3)
    assert (prediction.epistemic > 0).any()


def test_heads_that_do_not_divide_the_size_are_an_error():
    with pytest.raises(ValueError, match="heads=4 does not divide the width 6"):
        AttentiveNP(regression_model(), nn.MSELoss(), hidden=6)
