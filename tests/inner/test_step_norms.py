"""Batch normalization per inner step against a loop of autograd that keeps a model for every number of steps taken."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import ANIL, MAML, MLP, Conv4, Episode
from lightning_meta.execution.capture import recorder
from tests.reference import assert_same, without_running_statistics

pytestmark = pytest.mark.usefixtures("float64")


def dense():
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def numbers():
    return Episode(torch.randn(3, 6, 3), torch.randint(2, (3, 6)), torch.randn(3, 5, 3), torch.randint(2, (3, 5)))


def images():
    return Episode(
        torch.randn(2, 6, 1, 16, 16), torch.randint(2, (2, 6)), torch.randn(2, 4, 1, 16, 16), torch.randint(2, (2, 4))
    )


KINDS = {
    "BatchNorm1d": (dense, numbers, ["1.weight", "1.bias"]),
    "TaskBatchNorm2d": (
        lambda: Conv4(2, filters=2, image_size=16),
        images,
        [f"norms.{i}.{name}" for i in range(4) for name in ("weight", "bias")],
    ),
}


def make(kind, **arguments):
    learner = MAML(KINDS[kind][0](), inner_lr=0.2, batch_norm_per_step=True, **arguments)
    with torch.no_grad():  # every step's away from the others'
        for name, p in learner.named_parameters():
            if "norms" in name or name.startswith("model.1."):
                p.add_(0.3 * torch.randn_like(p))
    return learner


def loop(learner, task, names, steps, first_order=False, weights=None):
    """The query output after some steps, and the weighted sum of the query losses after each."""
    parameters = {n: p.detach().clone().requires_grad_() for n, p in learner.named_parameters()}
    model = without_running_statistics(learner.model)
    fast = {n.removeprefix("model."): p for n, p in parameters.items() if n.startswith("model.")}
    own = {n: fast.pop(n) for n in names}

    def call(fast, step, x):
        later = {n: parameters[f"step_norms.later.{n.replace('.', '/')}"] for n in names}
        norms = own if step == 0 else {n: p[min(step, len(p)) - 1] for n, p in later.items()}
        return functional_call(model, {**fast, **norms}, (x,))

    losses = []
    for step in range(steps + 1):
        output = call(fast, step, task.query_x)
        losses.append(nn.functional.cross_entropy(output, task.query_y))
        loss = nn.functional.cross_entropy(call(fast, step, task.support_x), task.support_y)
        slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
        fast = {n: p - 0.2 * slope for (n, p), slope in zip(fast.items(), slopes, strict=True)}
    total = sum(w * loss for w, loss in zip(weights or [0.0] * steps + [1.0], losses, strict=True))
    slopes = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True, allow_unused=True)
    return output.detach(), dict(zip(parameters, slopes, strict=True))


def mean_gradient(learner, batch, names, steps, **options):
    each = [loop(learner, batch.select(i), names, steps, **options)[1] for i in range(batch.num_tasks)]
    return {n: sum(own[n] for own in each) / len(each) for n in each[0]}


def found_gradient(learner, batch):
    learner.zero_grad()
    learner.training_step(batch, 0).backward()
    return {n: p.grad.clone() for n, p in learner.named_parameters()}


@pytest.mark.parametrize(
    "options", [{}, {"task_chunk_size": 1}, {"first_order": True}, {"checkpoint_inner_loop": True}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_gradient_is_the_loops(kind, options):
    learner, batch, names = make(kind, inner_steps=3, **options), KINDS[kind][1](), KINDS[kind][2]
    assert list(learner.step_norms.names) == names
    assert not set(learner.adapted_names) & set(names)
    expected = mean_gradient(learner, batch, names, 3, first_order=options.get("first_order", False))
    found = found_gradient(learner, batch)
    assert_same(found, expected, 1e-9)
    assert options.get("first_order") or all(g.any() for n, g in found.items() if n.startswith("step_norms"))


def test_a_recorded_step_has_it_too(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)
    learner, batch = make("BatchNorm1d", inner_steps=2), numbers()
    for _ in range(2):
        assert_same(found_gradient(learner, batch), mean_gradient(learner, batch, KINDS["BatchNorm1d"][2], 2), 1e-9)


def test_the_multi_step_loss_takes_each_steps_own():
    learner, batch = make("BatchNorm1d", inner_steps=2, multi_step_loss_epochs=10), numbers()
    expected = mean_gradient(learner, batch, KINDS["BatchNorm1d"][2], 2, weights=[0.0, 0.5, 0.5])
    assert_same(found_gradient(learner, batch), expected, 1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_evaluation_takes_the_step_it_is_at_and_then_the_last(steps):
    learner, batch = make("BatchNorm1d", inner_steps=2, eval_inner_steps=steps).eval(), numbers()
    task = batch.select(0)
    expected = loop(learner, task, KINDS["BatchNorm1d"][2], steps)[0]
    torch.testing.assert_close(learner.adapt(task.support_x, task.support_y)(task.query_x), expected)
    torch.testing.assert_close(learner.predict_step(batch)[0], expected)
    before = learner.evaluate(batch, record=(0, steps)).outputs[0, 0]
    torch.testing.assert_close(before, loop(learner, task, KINDS["BatchNorm1d"][2], 0, weights=[1.0])[0])


def test_all_steps_start_as_the_model():
    learner, plain, batch = (
        MAML(model := dense(), inner_lr=0.2, inner_steps=2, batch_norm_per_step=True),
        MAML(model, inner_lr=0.2, inner_steps=2, adapt=["0.*", "3.*"]),
        numbers(),
    )
    torch.testing.assert_close(learner.training_step(batch, 0), plain.training_step(batch, 0))


def test_it_is_kept_in_checkpoints(tmp_path):
    learner = MAML(Conv4(2, filters=2, image_size=16), inner_steps=2, batch_norm_per_step=True)
    trainer = L.Trainer(max_steps=0, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(tmp_path / "learner.ckpt")
    again = MAML.load_from_checkpoint(tmp_path / "learner.ckpt")
    assert again.step_norms.names == learner.step_norms.names


def test_models_without_batch_normalization_are_refused():
    with pytest.raises(ValueError, match="batch_norm_per_step=True but model has no batch normalization"):
        MAML(MLP(), nn.MSELoss(), batch_norm_per_step=True)
    with pytest.raises(ValueError, match="matches batch normalization only"):
        MAML(dense(), adapt=["1.*"], batch_norm_per_step=True)
    assert ANIL(dense()).step_norms is None
