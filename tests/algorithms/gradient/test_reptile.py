"""Reptile against closed forms, a plain loop with torch.optim, and the paper's expansion."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import Episode, Reptile, Support, collate_episodes
from lightning_meta.data import EpisodicDataModule, SinusoidDataModule
from lightning_meta.inner import Adam
from tests.algorithms.gradient.test_quadratic_oracles import quadratic
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")

TASKS, FEATURES = 3, 3


@pytest.fixture
def batch():
    return Episode(*(torch.randn(TASKS, n, d) for n, d in [(6, FEATURES), (6, 1), (8, FEATURES), (8, 1)]))


def network():
    return nn.Sequential(nn.Linear(FEATURES, 7), nn.Tanh(), nn.Linear(7, 1))


def everything(batch, task):
    return torch.cat([batch.support_x[task], batch.query_x[task]]), torch.cat(
        [batch.support_y[task], batch.query_y[task]]
    )


def end_of_inner_loop(model, optimizer_factory, x, y, steps):
    """φ_K by an optimizer of torch, on a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = optimizer_factory(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        nn.MSELoss()(model(x), y).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("steps", [1, 4])
def test_the_gradient_is_the_closed_form(batch, steps):
    alpha, model = 0.05, nn.Linear(FEATURES, 1, bias=False)
    Reptile(model, nn.MSELoss(), inner_lr=alpha, inner_steps=steps).training_step(batch, 0).backward()
    expected = torch.zeros(FEATURES, 1)
    for i in range(TASKS):
        a_matrix, a = quadratic(*everything(batch, i))
        m = torch.linalg.matrix_power(torch.eye(FEATURES) - alpha * a_matrix, steps)
        expected += (torch.eye(FEATURES) - m) @ (model.weight.detach().T - a) / (alpha * steps) / TASKS
    torch.testing.assert_close(model.weight.grad, expected.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("task_chunk_size", [None, 1, 2])
@pytest.mark.parametrize(
    ("rule", "factory"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.02)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
        (Adam(beta1=0.0, eps=1e-12), lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.0, 0.999), eps=1e-12)),
    ],
)
def test_the_gradient_is_that_of_torchs_own_optimizers(batch, rule, factory, task_chunk_size):
    model = network()
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(TASKS):
        end = end_of_inner_loop(model, factory, *everything(batch, i), steps=5)
        for name, p in model.named_parameters():
            expected[name] += (p.detach() - end[name]) / (0.02 * 5) / TASKS
    learner = Reptile(
        model, nn.MSELoss(), inner_lr=0.02, inner_steps=5, inner_optimizer=rule, task_chunk_size=task_chunk_size
    )
    assert_same(meta_gradient(learner, batch)[1], expected, 1e-8)


def test_one_step_is_joint_training(batch):
    model = network()
    loss, gradients = meta_gradient(Reptile(model, nn.MSELoss(), inner_lr=0.1, inner_steps=1), batch)
    model.zero_grad()
    joint = torch.stack([nn.MSELoss()(model(x), y) for x, y in (everything(batch, i) for i in range(TASKS))]).mean()
    joint.backward()
    torch.testing.assert_close(loss, joint.detach())
    assert_same(gradients, {name: p.grad for name, p in model.named_parameters()})


def test_two_minibatches_have_the_papers_expansion():
    """Section 5.1: E[(θ − φ₂)/α] = g₁ + g₂ − α H₂ g₁ + O(α²), so the error falls by 4 when α halves."""
    model, x, y = network(), torch.randn(2, FEATURES), torch.randn(2, 1)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p, i):
        return nn.MSELoss()(functional_call(model, p, (x[i : i + 1],)), y[i : i + 1])

    g = [torch.func.grad(loss)(parameters, i) for i in (0, 1)]

    def expansion(alpha):
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for first, second in ((0, 1), (1, 0)):  # both orders of the two minibatches are as likely
            _, times_hessian = torch.func.vjp(lambda p, i=second: torch.func.grad(loss)(p, i), parameters)
            (bent,) = times_hessian(g[first])
            for name in total:
                total[name] += 0.5 * (g[first][name] + g[second][name] - alpha * bent[name])
        return total

    def measured(alpha):
        task = Episode(x[None, :1], y[None, :1], x[None, 1:], y[None, 1:])
        learner = Reptile(model, nn.MSELoss(), inner_lr=alpha, inner_steps=2, inner_batch_size=1)
        found = {}
        for _ in range(40):  # each order is drawn sooner or later
            gradients = meta_gradient(learner, task)[1]
            found[round(float(gradients["0.weight"].sum()), 12)] = gradients
            if len(found) == 2:
                break
        one, other = found.values()
        return {name: one[name] + other[name] for name in one}  # two steps times one half

    def error(alpha):
        found, expected = measured(alpha), expansion(alpha)
        return max(float((found[name] - expected[name]).abs().max()) for name in expected)

    assert error(1e-3) < 1e-4
    assert error(1e-3) / error(5e-4) == pytest.approx(4, rel=0.05)


def test_minibatches_go_through_all_examples_before_one_comes_again():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x[:, 0].tolist())
            return super().forward(x)

    numbers = torch.arange(6.0)
    x = torch.stack([numbers, torch.ones(6)], dim=1)
    task = Episode(x[None, :2], torch.zeros(1, 2, 1), x[None, 2:], torch.zeros(1, 4, 1))
    learner = Reptile(Spy(2, 1), nn.MSELoss(), inner_lr=1e-3, inner_steps=5, inner_batch_size=2, task_chunk_size=1)
    learner.output_shape(Support(x[None], None))
    seen.clear()
    learner.training_step(task, 0)
    batches = seen[:5]
    assert [len(b) for b in batches] == [2] * 5
    assert sorted([i for b in batches[:3] for i in b]) == numbers.tolist()
    assert len({i for b in batches[3:] for i in b}) == 4


def test_every_pass_through_the_examples_has_its_own_order():
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            seen.append(x[:, 0].tolist())
            return super().forward(x)

    numbers = torch.arange(8.0)
    x = torch.stack([numbers, torch.ones(8)], dim=1)
    task = Episode(x[None, :3], torch.zeros(1, 3, 1), x[None, 3:], torch.zeros(1, 5, 1))
    learner = Reptile(Spy(2, 1), nn.MSELoss(), inner_lr=1e-3, inner_steps=12, inner_batch_size=4, task_chunk_size=1)
    learner.output_shape(Support(x[None], None))
    seen.clear()
    learner.training_step(task, 0)
    passes = [tuple(seen[i] + seen[i + 1]) for i in range(0, 12, 2)]
    assert all(sorted(order) == numbers.tolist() for order in passes)
    assert len(set(passes)) == 6


@pytest.mark.parametrize("inner_batch_size", [None, 14])
def test_the_meta_loss_reported_is_the_mean_of_the_inner_losses(batch, inner_batch_size):
    model, expected = network(), []
    for i in range(TASKS):
        fast, (x, y) = copy.deepcopy(model), everything(batch, i)
        optimizer = torch.optim.SGD(fast.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.MSELoss()(fast(x), y)
            loss.backward()
            optimizer.step()
            expected.append(loss.detach())
    learner = Reptile(model, nn.MSELoss(), inner_lr=0.1, inner_steps=4, inner_batch_size=inner_batch_size)
    torch.testing.assert_close(meta_gradient(learner, batch)[0], torch.stack(expected).mean())


def test_ragged_tasks_train_as_each_alone():
    model = network()
    tasks = [Episode(*(torch.randn(n, d) for n, d in [(s, 3), (s, 1), (q, 3), (q, 1)])) for s, q in [(2, 5), (4, 3)]]
    learner = Reptile(model, nn.MSELoss(), inner_lr=0.05, inner_steps=3)
    together = meta_gradient(learner, collate_episodes(tasks))[1]
    alone = [meta_gradient(learner, collate_episodes([task]))[1] for task in tasks]
    assert_same(together, {name: (alone[0][name] + alone[1][name]) / 2 for name in together})


def test_minibatches_never_hold_padding():
    tasks = [Episode(*(torch.randn(n, d) for n, d in [(s, 3), (s, 1), (q, 3), (q, 1)])) for s, q in [(2, 3), (6, 7)]]
    batch = collate_episodes(tasks)
    broken = batch._replace(support_x=batch.support_x.masked_fill(~batch.support_mask[..., None], torch.nan))
    learner = Reptile(network(), nn.MSELoss(), inner_batch_size=4, inner_steps=8)
    loss, gradients = meta_gradient(learner, broken)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in gradients.values())
    evaluating = Reptile(network(), nn.MSELoss(), eval_inner_batch_size=2, eval_inner_steps=8)
    assert torch.isfinite(evaluating.evaluate(broken).loss).all()


def test_a_frozen_learner_adapts_as_before(batch):
    learner = Reptile(network(), nn.MSELoss(), inner_lr=0.05)
    before = learner.evaluate(batch).outputs
    learner.freeze()
    assert torch.equal(learner.evaluate(batch).outputs, before)
    with pytest.raises(ValueError, match="were frozen after Reptile was made"):
        learner.training_step(batch, 0)


def test_a_meta_loss_that_would_be_ignored_is_refused():
    class Scaled(Reptile):
        def task_loss(self, meta, task):
            return super().task_loss(meta, task)

    with pytest.raises(TypeError, match="Scaled overrides task_loss, but Reptile computes the meta-gradient itself"):
        Scaled(network(), nn.MSELoss())


def test_the_shipped_schedule_is_the_authors_annealed_interpolation():
    """θ ← θ + ε_i · mean(φ − θ) with ε_i = 1 − i/iterations, by SGD of rate α K and a linear schedule by step."""
    iterations, alpha, steps, tasks = 6, 0.01, 4, 3
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    theta = copy.deepcopy(model)
    data = SinusoidDataModule(shots=5, tasks_per_batch=tasks, train_tasks=tasks * iterations // 2)
    learner = Reptile(
        model,
        nn.MSELoss(),
        inner_lr=alpha,
        inner_steps=steps,
        optimizer=lambda p: torch.optim.SGD(p, lr=alpha * steps),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=iterations),
        lr_scheduler_interval="step",
    )
    trainer = L.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.fit(learner, data)
    episodes = data.episodes("train")
    for i in range(iterations):
        batch = episodes.__getitems__(range(i * tasks, (i + 1) * tasks))
        ends = [
            end_of_inner_loop(theta, lambda p: torch.optim.SGD(p, lr=alpha), *everything(batch, t), steps)
            for t in range(tasks)
        ]
        with torch.no_grad():
            for name, p in theta.named_parameters():
                p += (1 - i / iterations) * (torch.stack([end[name] for end in ends]).mean(0) - p)
    assert_same(
        {n: p.detach() for n, p in model.named_parameters()}, {n: p.detach() for n, p in theta.named_parameters()}, 1e-9
    )


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_a_kept_state_goes_on_where_the_last_batch_left_it(batch, beta1):
    """With one task a batch: the authors' code, one optimizer of torch that is never reset."""
    model, shadow = network(), None
    learner = Reptile(
        model,
        nn.MSELoss(),
        inner_lr=0.02,
        inner_steps=3,
        inner_optimizer=Adam(beta1=beta1, eps=1e-12),
        inner_state="kept",
    )
    shadow = copy.deepcopy(model)
    optimizer = torch.optim.Adam(shadow.parameters(), lr=0.02, betas=(beta1, 0.999), eps=1e-12)
    for i in range(TASKS):
        start = copy.deepcopy(shadow.state_dict())
        x, y = everything(batch, i)
        for _ in range(3):
            optimizer.zero_grad()
            nn.MSELoss()(shadow(x), y).backward()
            optimizer.step()
        expected = {name: (start[name] - p.detach()) / (0.02 * 3) for name, p in shadow.named_parameters()}
        assert_same(meta_gradient(learner, batch.select(slice(i, i + 1)))[1], expected, 1e-8)
        shadow.load_state_dict(start)
    again = Reptile(
        network(), nn.MSELoss(), inner_lr=0.02, inner_optimizer=Adam(beta1=beta1, eps=1e-12), inner_state="kept"
    )
    again.load_state_dict(learner.state_dict())
    assert int(again.kept_state.steps) == 9
    for name, buffer in learner.named_buffers():
        assert torch.equal(again.get_buffer(name), buffer)
    assert torch.equal(again.evaluate(batch, steps=3).outputs, learner.evaluate(batch, steps=3).outputs)


def test_a_kept_state_is_the_mean_over_the_tasks_of_a_batch(batch):
    def trained(tasks):
        learner = Reptile(copy.deepcopy(model), nn.MSELoss(), inner_optimizer=Adam(beta1=0.0), inner_state="kept")
        learner.training_step(tasks, 0)
        return torch.cat([buffer.flatten() for name, buffer in learner.named_buffers() if "leaf" in name])

    model = network()
    alone = torch.stack([trained(batch.select(slice(i, i + 1))) for i in range(TASKS)])
    torch.testing.assert_close(trained(batch), alone.mean(0))
    assert alone.std(0).max() > 1e-6


@pytest.mark.parametrize("prefix", ["", "eval_"])
def test_an_inner_batch_larger_than_the_task_is_refused_before_a_step(batch, prefix):
    learner = Reptile(network(), nn.MSELoss(), **{f"{prefix}inner_batch_size": 100})
    call = learner.evaluate if prefix else lambda b: learner.training_step(b, 0)
    with pytest.raises(
        ValueError, match=f"{prefix}inner_batch_size=100 but the task has {6 if prefix else 14} examples"
    ):
        call(batch)


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), "rprop"]
)
def test_an_optimizer_that_cannot_run_functionally_is_refused(optimizer):
    with pytest.raises(ValueError, match=r"(?s)inner_optimizer=.* is not one of \['adam', 'momentum', 'sgd'\]"):
        Reptile(network(), nn.MSELoss(), inner_optimizer=optimizer)


def test_wrong_arguments_are_refused():
    for wrong in (
        {"inner_batch_size": 0},
        {"eval_inner_batch_size": 0},
        {"inner_state": "maybe"},
        {"lr_scheduler_interval": "week"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Reptile(network(), nn.MSELoss(), **wrong)


def test_evaluation_is_transductive_or_not(batch):
    """With "support" a query's output does not depend on the other queries; with "batch" it does."""
    images = Episode(
        torch.randn(2, 4, 1, 6, 6), torch.randint(3, (2, 4)), torch.randn(2, 5, 1, 6, 6), torch.randint(3, (2, 5))
    )
    fewer = images._replace(query_x=images.query_x[:, :2], query_y=images.query_y[:, :2])
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    for statistics, same in (("support", True), ("batch", False)):
        learner = Reptile(model, inner_steps=2, batch_statistics=statistics)
        whole, part = learner.evaluate(images).outputs, learner.evaluate(fewer).outputs
        assert torch.allclose(whole[:, :, :2], part) == same


def test_training_by_minibatches_under_lightning(tmp_path):
    x = torch.randn(60, 4)
    data = EpisodicDataModule(
        torch.utils.data.TensorDataset(x, torch.arange(6).repeat(10)),
        ways=3,
        shots=2,
        query_shots=3,
        tasks_per_batch=4,
        train_tasks=16,
    )
    learner = Reptile(nn.Linear(4, 3), inner_lr=0.1, inner_batch_size=5, inner_optimizer="adam", inner_state="kept")
    before = learner.model.weight.detach().clone()
    trainer = L.Trainer(max_epochs=2, logger=False, default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.fit(learner, data)
    assert int(learner.kept_state.steps) == 40
    assert not torch.equal(before, learner.model.weight)
    assert all(torch.isfinite(p).all() for p in learner.parameters())
