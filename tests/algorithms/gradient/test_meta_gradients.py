"""The meta-gradient of any model equals a plain loop's and finite differences, however tasks are mapped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, Episode, collate_episodes
from lightning_meta.execution.options import Execution
from lightning_meta.execution.plan import ModelSize, plan
from lightning_meta.models import Conv4
from tests.reference import assert_same, loop_loss, loop_meta_gradient, meta_gradient, without_running_statistics

pytestmark = pytest.mark.usefixtures("float64")

WAYS = 3


def images(tasks=4, support=6, query=5):
    return Episode(
        torch.randn(tasks, support, 2, 8, 8),
        torch.randint(WAYS, (tasks, support)),
        torch.randn(tasks, query, 2, 8, 8),
        torch.randint(WAYS, (tasks, query)),
    )


def convolutional(norm):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm, nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, WAYS)
    )


def scrambled(model):
    """Every parameter away from 1 and 0, so that a dropped scale or shift shows."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


NORMS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "BatchNorm2d without statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "LayerNorm": lambda: nn.LayerNorm([4, 8, 8]),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "InstanceNorm2d with statistics": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LocalResponseNorm": lambda: nn.LocalResponseNorm(2),
    "Dropout, off": lambda: nn.Dropout(0.0),
}


@pytest.mark.parametrize("chunk", [None, 3, 1])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_every_normalization_gives_the_loops_gradient(norm, steps, chunk):
    model, batch = scrambled(convolutional(NORMS[norm]())), images()
    learner = MAML(model, inner_lr=0.3, inner_steps=steps, task_chunk_size=chunk)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss, gradient = meta_gradient(learner, batch)
    expected_loss, expected = loop_meta_gradient(model, nn.CrossEntropyLoss(), batch, 0.3, steps)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-10, atol=1e-10)
    assert_same(gradient, expected)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize("norm", ["BatchNorm2d", "LayerNorm", "InstanceNorm2d", "GroupNorm"])
def test_meta_gradient_agrees_with_finite_differences(norm):
    model, batch = scrambled(convolutional(NORMS[norm]())), images(tasks=2)
    _, gradient = meta_gradient(MAML(model, inner_lr=0.3, inner_steps=2), batch)
    plain = without_running_statistics(model)
    start = {n: p.detach() for n, p in plain.named_parameters()}
    direction = {n: torch.randn_like(p) for n, p in start.items()}

    def loss_at(epsilon):
        moved = {n: (p + epsilon * direction[n]).requires_grad_() for n, p in start.items()}
        losses = [loop_loss(plain, nn.CrossEntropyLoss(), moved, batch.select(i), 0.3, 2) for i in range(2)]
        return torch.stack(losses).mean().detach()

    numeric = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
    analytic = sum((gradient[n] * direction[n]).sum() for n in gradient)
    torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("downsampling", ["stride", "max_pool"])
def test_conv4_gives_the_loops_gradient(downsampling):
    model = scrambled(Conv4(WAYS, in_channels=2, filters=4, downsampling=downsampling, image_size=16))
    batch = Episode(
        torch.randn(3, 6, 2, 16, 16), torch.randint(3, (3, 6)), torch.randn(3, 4, 2, 16, 16), torch.randint(3, (3, 4))
    )
    _, gradient = meta_gradient(MAML(model, inner_lr=0.2, inner_steps=2), batch)
    assert_same(gradient, loop_meta_gradient(model, nn.CrossEntropyLoss(), batch, 0.2, 2)[1], 1e-9)


@pytest.mark.parametrize("norm", ["BatchNorm2d", "LayerNorm"])
def test_first_order_gives_the_loops_gradient(norm):
    model, batch = scrambled(convolutional(NORMS[norm]())), images()
    _, gradient = meta_gradient(MAML(model, inner_lr=0.3, inner_steps=3, first_order=True), batch)
    assert_same(gradient, loop_meta_gradient(model, nn.CrossEntropyLoss(), batch, 0.3, 3, first_order=True)[1])


def ragged(make, sizes):
    return [make(support, query) for support, query in sizes]


def regression_task(support, query):
    return Episode(torch.randn(support, 3), torch.randn(support, 1), torch.randn(query, 3), torch.randn(query, 1))


def image_task(support, query):
    one = images(1, support, query)
    return one.select(0)


def mean_of_fourth_powers(output, target):
    return ((output - target) ** 4).mean()


class RootMeanSquare(nn.MSELoss):
    """The reduction is a subclass's own business: a mask may not rely on it."""

    def forward(self, output, target):
        return (output - target).square().mean().sqrt()


class HandWrittenNorm(nn.Module):
    """Couples examples in a way that no library can know by its type."""

    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0, correction=0) + 1)


@pytest.mark.parametrize("chunk", [None, 2, 1])
@pytest.mark.parametrize(
    ("model", "loss_fn", "make"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), nn.MSELoss(), regression_task),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), mean_of_fourth_powers, regression_task),
        (lambda: convolutional(nn.GroupNorm(2, 4)), nn.CrossEntropyLoss(), image_task),
        (
            lambda: convolutional(nn.GroupNorm(2, 4)),
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3], dtype=torch.float64)),
            image_task,
        ),
        (lambda: convolutional(nn.BatchNorm2d(4)), nn.CrossEntropyLoss(), image_task),
        (lambda: convolutional(HandWrittenNorm()), nn.CrossEntropyLoss(), image_task),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), RootMeanSquare(), regression_task),
    ],
    ids=[
        "mean squared error",
        "a loss of the user's own",
        "cross-entropy",
        "weighted cross-entropy",
        "batch normalization",
        "normalization of the user's own",
        "a subclass of a loss",
    ],
)
def test_a_masked_ragged_batch_is_each_task_alone(model, loss_fn, make, chunk):
    model = scrambled(model())
    tasks = ragged(make, [(4, 6), (7, 3), (5, 5), (4, 6)])
    batch = collate_episodes(tasks)
    # Whatever stands in the padding must not matter.
    batch.support_x[~batch.support_mask] = float("nan")
    learner = MAML(model, loss_fn, inner_lr=0.1, inner_steps=2, task_chunk_size=chunk)
    loss, gradient = meta_gradient(learner, batch)
    alone = [loop_meta_gradient(model, loss_fn, collate_episodes([task]), 0.1, 2) for task in tasks]
    torch.testing.assert_close(loss, torch.stack([own for own, _ in alone]).mean(), rtol=1e-10, atol=1e-10)
    assert_same(gradient, {n: sum(own[n] for _, own in alone) / len(alone) for n in gradient})
    evaluated = learner.evaluate(batch)
    for i, task in enumerate(tasks):
        adapted = learner.adapt(task.support_x, task.support_y)
        found = evaluated.outputs[i, -1, : len(task.query_x)]
        torch.testing.assert_close(found, adapted(task.query_x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", [nn.GroupNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("sizes", [[(4, 5), (7, 5), (4, 5)], [(4, 5), (4, 3), (4, 6)]], ids=["support", "query"])
def test_only_one_of_the_sets_may_be_ragged(sizes, norm):
    model = scrambled(convolutional(norm(2, 4) if norm is nn.GroupNorm else norm(4)))
    tasks = ragged(image_task, sizes)
    batch = collate_episodes(tasks)
    assert (batch.support_mask is None) != (batch.query_mask is None)
    for x, mask in ((batch.support_x, batch.support_mask), (batch.query_x, batch.query_mask)):
        if mask is not None:
            x[~mask] = float("nan")
    loss, gradient = meta_gradient(MAML(model, inner_lr=0.1, inner_steps=2), batch)
    alone = [loop_meta_gradient(model, nn.CrossEntropyLoss(), collate_episodes([task]), 0.1, 2) for task in tasks]
    torch.testing.assert_close(loss, torch.stack([own for own, _ in alone]).mean(), rtol=1e-10, atol=1e-10)
    assert_same(gradient, {n: sum(own[n] for _, own in alone) / len(alone) for n in gradient})


def test_the_librarys_chunks_are_bounded_for_convolutions_alone():
    def chunk_size(model, batch):
        return plan(ModelSize.of(model), batch, Execution(), threads=2, steps=1, shared_out=False).chunk_size

    batch = Episode(*[torch.zeros(40, n, 1, 28, 28) for n in (5, 5, 25, 25)])
    assert chunk_size(nn.Conv2d(1, 1, 3), batch) == 8
    assert chunk_size(nn.Linear(28, 1), batch) == 40
    huge = Episode(*[torch.zeros(2, 1, 3, 600, 600) for _ in range(4)])
    assert chunk_size(nn.Conv2d(3, 1, 3), huge) == 1


def test_accumulated_and_scaled_losses_scale_the_gradient():
    model, batch = convolutional(nn.GroupNorm(2, 4)), images()
    learner = MAML(model, inner_lr=0.3)
    _, once = meta_gradient(learner, batch)
    learner.zero_grad()
    (learner.training_step(batch, 0) / 4).backward()
    (learner.training_step(batch, 0) * 3).backward()
    assert_same({n: p.grad for n, p in model.named_parameters()}, {n: 3.25 * g for n, g in once.items()})


def test_frozen_and_tied_parameters_match_the_loop():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Linear(3, 3).requires_grad_(False)
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(torch.tanh(self.frozen(x)))))

    model, batch = (
        Tied(),
        collate_episodes(
            [Episode(torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3)) for _ in range(3)]
        ),
    )
    _, gradient = meta_gradient(MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2), batch)
    assert_same(gradient, loop_meta_gradient(model, nn.MSELoss(), batch, 0.1, 2)[1])
