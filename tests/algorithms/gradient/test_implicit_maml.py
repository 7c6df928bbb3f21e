"""Implicit MAML against closed forms and the unrolled proximal gradient."""

from __future__ import annotations

import copy
import warnings

import lightning as L
import pytest
import torch
from torch import nn
from torch.func import functional_call

from lightning_meta import MLP, Episode, ImplicitMAML, collate_episodes
from lightning_meta.data import SinusoidDataModule
from lightning_meta.execution.capture import recorder
from tests.algorithms.gradient.test_quadratic_oracles import quadratic
from tests.reference import assert_same, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


TASKS, FEATURES, LAM = 3, 3, 1.5


@pytest.fixture
def batch():
    return Episode(*(torch.randn(TASKS, n, d) for n, d in [(7, FEATURES), (7, 1), (9, FEATURES), (9, 1)]))


def network():
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 1))


def closed_form(theta, batch, lam):
    """The mean query loss's gradient in θ and in λ (a vector: one λ a feature), and φ* of each task."""
    lam = torch.as_tensor(lam).expand(FEATURES)
    in_theta, in_lambda, ends = torch.zeros(FEATURES), torch.zeros(FEATURES), []
    for i in range(TASKS):
        a_matrix, a = quadratic(batch.support_x[i], batch.support_y[i])
        c_matrix, b = quadratic(batch.query_x[i], batch.query_y[i])
        a, b = a[:, 0], b[:, 0]
        system = a_matrix + lam.diag()
        phi = torch.linalg.solve(system, a_matrix @ a + lam * theta)
        adjoint = torch.linalg.solve(system, c_matrix @ (phi - b))
        in_theta += lam * adjoint / TASKS
        in_lambda += adjoint * (theta - phi) / TASKS
        ends.append(phi)
    return in_theta, in_lambda, ends


SOLVERS = [
    {"inner_solver": "gradient_descent", "inner_lr": 0.1, "inner_steps": 400},
    {"inner_solver": "hessian_free", "inner_steps": 2},
]


@pytest.mark.parametrize("task_chunk_size", [None, 1, 2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_meta_gradient_is_the_closed_form(batch, solver, task_chunk_size):
    model = nn.Linear(FEATURES, 1, bias=False)
    learner = ImplicitMAML(
        model, nn.MSELoss(), prox_lambda=LAM, cg_steps=FEATURES, task_chunk_size=task_chunk_size, **solver
    )
    learner.training_step(batch, 0).backward()
    expected, _, ends = closed_form(model.weight.detach()[0], batch, LAM)
    torch.testing.assert_close(model.weight.grad[0], expected, rtol=1e-6, atol=1e-6)
    adapted = learner.adapt(batch.support_x[0], batch.support_y[0])
    torch.testing.assert_close(adapted.state["weight"][0], ends[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("learned", ["scalar", "tensor"])
def test_a_learned_lambda_has_the_closed_form_gradient(batch, learned):
    class Split(nn.Module):
        """A linear model in two tensors, so that λ can differ."""

        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(2))

        def forward(self, x):
            return x @ torch.cat([self.first, self.second])[:, None]

    model = Split()
    learner = ImplicitMAML(
        model,
        nn.MSELoss(),
        prox_lambda={"first": 0.7, "*": 2.0},
        learned_lambda=learned,
        cg_steps=5,
        inner_solver="hessian_free",
        inner_steps=3,
    )
    learner.training_step(batch, 0).backward()
    lam = torch.tensor([0.7, 2.0, 2.0])
    in_theta, in_lambda, _ = closed_form(torch.cat([model.first, model.second]).detach(), batch, lam)
    found = torch.cat([model.first.grad, model.second.grad])
    torch.testing.assert_close(found, in_theta, rtol=1e-6, atol=1e-6)
    by_logarithm = in_lambda * lam
    expected = torch.stack([by_logarithm[0], by_logarithm[1:].sum()])
    expected = expected.sum(0, keepdim=True) if learned == "scalar" else expected
    torch.testing.assert_close(learner.prox_strength.log_factors.grad, expected, rtol=1e-6, atol=1e-6)


def unrolled(model, batch, lam, alpha, steps, adapted=None):
    """Backpropagation through proximal gradient descent, one task after another."""
    theta = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    names = list(theta) if adapted is None else adapted
    losses = []
    for i in range(batch.num_tasks):
        phi = dict(theta)
        for _ in range(steps):
            loss = nn.MSELoss()(functional_call(model, phi, (batch.support_x[i],)), batch.support_y[i])
            loss = loss + lam / 2 * sum((phi[n] - theta[n]).square().sum() for n in names)
            gradients = torch.autograd.grad(loss, [phi[n] for n in names], create_graph=True)
            phi = phi | {n: phi[n] - alpha * g for n, g in zip(names, gradients, strict=True)}
        losses.append(nn.MSELoss()(functional_call(model, phi, (batch.query_x[i],)), batch.query_y[i]))
    return dict(zip(theta, torch.autograd.grad(torch.stack(losses).mean(), list(theta.values())), strict=True))


@pytest.mark.parametrize("adapt", ["all", "head"])
def test_the_unrolled_proximal_gradient_tends_to_it(batch, adapt):
    """For a network, with parameters that adapt and, with the head alone, some that do not."""
    model = network()
    names = ["2.weight", "2.bias"] if adapt == "head" else None

    def implicit(steps):
        learner = ImplicitMAML(
            model, nn.MSELoss(), inner_lr=0.1, inner_steps=steps, prox_lambda=LAM, cg_steps=40, adapt=adapt
        )
        return meta_gradient(learner, batch)[1]

    def distance(steps):
        found, expected = implicit(steps), unrolled(model, batch, LAM, 0.1, steps, names)
        return max(float((found[n] - expected[n]).abs().max()) for n in expected)

    distances = [distance(steps) for steps in (5, 50, 1000)]
    assert distances[0] > 3 * distances[1] > 1000 * distances[2]
    assert distances[2] < 1e-8


def test_damping_is_added_to_the_diagonal(batch):
    model = nn.Linear(FEATURES, 1, bias=False)
    learner = ImplicitMAML(
        model, nn.MSELoss(), prox_lambda=LAM, cg_damping=2.5, cg_steps=5, inner_solver="hessian_free", inner_steps=3
    )
    learner.training_step(batch, 0).backward()
    expected, ends = torch.zeros(FEATURES), closed_form(model.weight.detach()[0], batch, LAM)[2]
    for i in range(TASKS):
        a_matrix, _ = quadratic(batch.support_x[i], batch.support_y[i])
        c_matrix, b = quadratic(batch.query_x[i], batch.query_y[i])
        system = a_matrix + (LAM + 2.5) * torch.eye(FEATURES)
        expected += LAM * torch.linalg.solve(system, c_matrix @ (ends[i] - b[:, 0])) / TASKS
    torch.testing.assert_close(model.weight.grad[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("features", [3, 10])
def test_the_defaults_nearly_solve_a_quadratic(features):
    batch = Episode(*(torch.randn(4, 20, size) for size in (features, 1, features, 1)))
    model = nn.Linear(features, 1, bias=False)
    exact = ImplicitMAML(copy.deepcopy(model), nn.MSELoss(), inner_lr=0.1, inner_steps=400, cg_steps=features)
    (expected,) = meta_gradient(exact, batch)[1].values()
    (found,) = meta_gradient(ImplicitMAML(model, nn.MSELoss()), batch)[1].values()
    assert float((found - expected).norm()) < 0.15 * float(expected.norm())


def flat_and_steep(model, lam, steps):
    """A learner that solves tasks with large inputs, and not those with small ones: their curvature is but λ."""
    learner = ImplicitMAML(model, nn.MSELoss(), prox_lambda=lam, inner_lr=0.03, inner_steps=steps)
    y = torch.randn(2, 7, 1)
    x = torch.linalg.qr(torch.randn(2, 7, FEATURES))[0]
    return learner, *(Episode(scale * x, size * y, scale * x, size * y) for scale, size in ((1e-3, 1e6), (7.0, 1.0)))


def test_an_inner_problem_far_from_solved_is_told_once(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)
    learner, flat, steep = flat_and_steep(nn.Linear(FEATURES, 1, bias=False), lam=1.0, steps=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            learner.training_step(steep, 0)
    with pytest.warns(UserWarning, match="after inner_steps=16 with inner_lr=0.03.*raise inner_steps, inner_lr or"):
        learner.training_step(flat, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.training_step(flat, 0)


def test_stationarity_over_pull_bounds_the_distance_to_the_solution():
    learner, flat, steep = flat_and_steep(nn.Linear(FEATURES, 1, bias=False), lam=1.0, steps=16)
    meta = {n: p.detach() for n, p in learner.named_parameters()}
    theta = learner.model.weight.detach()[0]
    for batch in (flat, steep):
        task = batch.select(0)
        a_matrix, a = quadratic(task.support_x, task.support_y)
        system = a_matrix + torch.eye(FEATURES)
        phi_star = torch.linalg.solve(system, a_matrix @ a[:, 0] + theta)
        phi = learner.adapt(task.support_x, task.support_y).state["weight"][0]
        found = learner.task_gradient(meta, task)[1].diagnostics
        torch.testing.assert_close(found["proximal_pull"], (phi - theta).norm())
        ratio = found["inner_stationarity"] / found["proximal_pull"]
        assert float((phi - phi_star).norm() / (phi - theta).norm()) <= float(ratio) * (1 + 1e-9)


def test_a_warm_start_needs_fewer_steps_where_lambda_is_large(batch):
    model = network()

    def gradient(cg_steps, warm):
        learner = ImplicitMAML(
            model, nn.MSELoss(), inner_lr=0.01, prox_lambda=50.0, cg_steps=cg_steps, cg_warm_start=warm
        )
        return torch.cat([g.flatten() for g in meta_gradient(learner, batch)[1].values()])

    exact = gradient(60, False)
    torch.testing.assert_close(gradient(60, True), exact, rtol=1e-8, atol=1e-10)
    assert (gradient(1, True) - exact).norm() < 0.5 * (gradient(1, False) - exact).norm()


def test_negative_curvature_gives_the_first_order_gradient():
    """A support loss that curves down everywhere: −½ c ‖φ‖² with c > λ."""

    class Downward(nn.Module):
        def forward(self, output, target):
            return -2.0 * output.square().sum(1).mean()

    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.phi = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return self.phi.expand(len(x), 3)

    model = Itself()
    batch = Episode(torch.ones(1, 2, 1), torch.zeros(1, 2, 3), torch.ones(1, 2, 1), torch.zeros(1, 2, 3))
    learner = ImplicitMAML(model, Downward(), prox_lambda=1.0, inner_lr=0.01, inner_steps=2)
    learner.training_step(batch, 0).backward()
    phi = learner.adapt(batch.support_x[0], batch.support_y[0]).state["phi"]
    torch.testing.assert_close(model.phi.grad, -4.0 * phi)


def test_strengths_by_name_are_kept_in_checkpoints(tmp_path):
    strengths = {"layers.0.*": 0.5, "*": 2.0}
    learner = ImplicitMAML(MLP(), nn.MSELoss(), prox_lambda=strengths)
    trainer = L.Trainer(max_steps=0, logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(tmp_path / "learner.ckpt")
    again = ImplicitMAML.load_from_checkpoint(tmp_path / "learner.ckpt")
    assert again.prox_strength.initial == learner.prox_strength.initial


def test_the_logged_strength_is_the_geometric_mean_over_tensors(batch):
    strengths = {"0.weight": 0.5, "0.bias": 1.0, "2.*": 8.0}
    learner = ImplicitMAML(network(), nn.MSELoss(), inner_lr=0.01, inner_steps=2, prox_lambda=strengths)
    _, result = learner.task_gradient({n: p.detach() for n, p in learner.named_parameters()}, batch.select(0))
    assert float(result.diagnostics["prox_lambda"]) == pytest.approx((0.5 * 1.0 * 8.0 * 8.0) ** 0.25)


def test_diagnostics_are_logged(tmp_path):
    class Spy(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            self.seen = dict(trainer.callback_metrics)

    learner = ImplicitMAML(
        nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)),
        nn.MSELoss(),
        prox_lambda=2.0,
        cg_steps=3,
        learned_lambda="scalar",
    )
    spy = Spy()
    trainer = L.Trainer(
        max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[spy]
    )
    trainer.fit(learner, SinusoidDataModule(shots=5, tasks_per_batch=4))
    for name in ("cg_residual", "inner_stationarity", "negative_curvature", "prox_lambda"):
        assert torch.isfinite(spy.seen[f"train/{name}"])
    assert float(spy.seen["train/prox_lambda"]) == pytest.approx(2.0, rel=0.01)
    assert float(spy.seen["train/inner_stationarity"]) > 0


def test_the_logged_stationarity_is_the_regularized_gradients_norm(batch):
    model = nn.Linear(FEATURES, 1, bias=False)
    learner = ImplicitMAML(model, nn.MSELoss(), inner_lr=0.01, inner_steps=2, prox_lambda=LAM)
    meta = {n: p.detach() for n, p in learner.named_parameters()}
    _, result = learner.task_gradient(meta, batch.select(0))
    a_matrix, a = quadratic(batch.support_x[0], batch.support_y[0])
    theta = model.weight.detach()[0]
    phi = theta
    for _ in range(2):
        phi = phi - 0.01 * (a_matrix @ (phi - a[:, 0]) + LAM * (phi - theta))
    expected = (a_matrix @ (phi - a[:, 0]) + LAM * (phi - theta)).norm()
    torch.testing.assert_close(result.diagnostics["inner_stationarity"], expected)


def test_ragged_tasks_train_as_each_alone():
    model = network()
    tasks = [Episode(*(torch.randn(n, d) for n, d in [(s, 3), (s, 1), (q, 3), (q, 1)])) for s, q in [(2, 5), (4, 3)]]
    learner = ImplicitMAML(model, nn.MSELoss(), inner_lr=0.05, inner_steps=3)
    together = meta_gradient(learner, collate_episodes(tasks))[1]
    alone = [meta_gradient(learner, collate_episodes([task]))[1] for task in tasks]
    assert_same(together, {name: (alone[0][name] + alone[1][name]) / 2 for name in together})


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d])
def test_vectorized_tasks_equal_one_at_a_time_with_normalization(norm):
    layer = nn.GroupNorm(2, 4) if norm is nn.GroupNorm else norm(4, affine=True)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    batch = Episode(
        torch.randn(2, 6, 1, 4, 4), torch.randint(3, (2, 6)), torch.randn(2, 6, 1, 4, 4), torch.randint(3, (2, 6))
    )
    for solver in ({"inner_lr": 0.1, "inner_steps": 3}, {"inner_solver": "hessian_free", "inner_steps": 2}):
        found = [
            meta_gradient(ImplicitMAML(copy.deepcopy(model), task_chunk_size=size, **solver), batch)[1]
            for size in (None, 1)
        ]
        assert_same(found[0], found[1], 1e-8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prox_lambda": 0.0}, r"prox_lambda=0.0 must be a positive number"),
        ({"prox_lambda": -1.0}, r"prox_lambda=-1.0 must be a positive number"),
        ({"prox_lambda": {"*": 0.0}}, r"prox_lambda\['\*'\]=0.0 must be a positive number"),
        ({"prox_lambda": {"haed.*": 1.0, "*": 2.0}}, r"the pattern 'haed.\*' matches no adapted parameter"),
        ({"prox_lambda": {"0.weight": 1.0}}, r"no pattern matches the parameter '0.bias'"),
        ({"prox_lambda": {"*": 2.0, "2.*": 0.5}}, r"earlier patterns match all parameters of '2.\*'"),
        ({"cg_steps": 0}, r"cg_steps=0 must be an integer of at least 1"),
        ({"cg_damping": -0.1}, r"cg_damping=-0.1 must be 0 or a positive number"),
        ({"inner_solver": "lbfgs"}, r"inner_solver='lbfgs' is not one of"),
        ({"learned_lambda": "all"}, r"learned_lambda='all' is not one of"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ImplicitMAML(network(), nn.MSELoss(), **wrong)
