"""The ridge head against linear algebra and Gaussian conditioning; the learner against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_meta import AmortizedMAML, Conv4, Episode
from lightning_meta.inner.solvers.ridge import ridge
from lightning_meta.models.set_encoder import SetEncoder

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize(("examples", "features"), [(5, 9), (9, 9), (12, 9)])
def test_dual_and_primal_give_the_minimizer(examples, features):
    x, y, w0 = torch.randn(examples, features), torch.randn(examples, 2), torch.randn(features, 2)
    lam = torch.tensor(0.3)
    found = ridge(x, y, lam, w0)
    assert found.dual == (examples <= features)
    system = x.T @ x + lam * torch.eye(features)
    expected = torch.linalg.solve(system, x.T @ y + lam * w0)
    torch.testing.assert_close(found.weight, expected, rtol=1e-10, atol=1e-10)
    query = torch.randn(4, features)
    variance = (query @ torch.linalg.inv(system) * query).sum(1)
    torch.testing.assert_close(found.variance(query), variance, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("examples", [4, 15])
def test_the_head_predicts_as_the_exact_gaussian_posterior(examples):
    """Conditioning the joint Gaussian of support and query targets, with no regression in sight."""
    size, noise, penalty = 6, 0.4, 0.7
    x, y, query, w0 = torch.randn(examples, size), torch.randn(examples, 1), torch.randn(5, size), torch.randn(size, 1)
    found = ridge(x, y, torch.tensor(penalty), w0)
    prior = noise**2 / penalty
    joint = prior * torch.cat([x, query]) @ torch.cat([x, query]).T + noise**2 * torch.eye(examples + 5)
    own, cross, rest = joint[:examples, :examples], joint[examples:, :examples], joint[examples:, examples:]
    gain = cross @ torch.linalg.inv(own)
    torch.testing.assert_close(query @ found.weight, query @ w0 + gain @ (y - x @ w0), rtol=1e-9, atol=1e-9)
    covariance = rest - gain @ cross.T
    torch.testing.assert_close(noise**2 * (1 + found.variance(query)), covariance.diagonal(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("examples", [4, 8], ids=["dual", "primal"])
def test_the_head_is_solved_for_in_full_precision(examples):
    x, y, w0 = torch.randn(examples, 6), torch.randn(examples, 2), torch.randn(6, 2)
    system = x.T @ x + 0.3 * torch.eye(6)
    query = torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ridge(x.float(), y.float(), torch.tensor(0.3).float(), w0.float())
        variance = found.variance(query.float())
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.weight.double(), torch.linalg.solve(system, x.T @ y + 0.3 * w0), **close)
    torch.testing.assert_close(variance.double(), (query @ torch.linalg.inv(system) * query).sum(1), **close)


def regression(**arguments):
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    return AmortizedMAML(model, nn.MSELoss(), **arguments)


def numbers(support=6):
    return Episode(*(torch.randn(2, n, d) for n, d in [(support, 2), (support, 1), (7, 2), (7, 1)]))


def classes():
    return Episode(torch.randn(2, 6, 2), torch.randint(3, (2, 6)), torch.randn(2, 7, 2), torch.randint(3, (2, 7)))


def classification(**arguments):
    return AmortizedMAML(nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)), **arguments)


def test_prediction_of_a_task_is_bayesian_linear_regression_on_the_generated_features():
    learner = regression(observation_std=0.3, initial_log_std=-30.0, ridge_penalty=0.5, eval_num_samples=1).eval()
    batch = numbers()
    task = learner.adapt(batch.support_x[0], batch.support_y[0])
    body = torch.func.functional_call
    state = task.state[0].body

    def features(x):
        hidden = torch.tanh(body(learner.model[0], {k[2:]: v for k, v in state.items()}, (x,)))
        return torch.cat([hidden, torch.ones(len(x), 1)], dim=1)

    h, query = features(batch.support_x[0]), features(batch.query_x[0])
    w0 = torch.cat([learner.model[2].weight.T, learner.model[2].bias[None]])
    system = torch.linalg.inv(h.T @ h + 0.5 * torch.eye(9))
    mean = query @ (system @ (h.T @ batch.support_y[0] + 0.5 * w0))
    epistemic = 0.09 * (query @ system * query).sum(1, keepdim=True)
    prediction = task.predict(batch.query_x[0])
    torch.testing.assert_close(prediction.mean, mean.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.epistemic, epistemic.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.aleatoric, torch.full((7, 1), 0.09))
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)


@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("make", [(regression, numbers), (classification, classes)], ids=["regression", "classes"])
def test_the_meta_gradient_is_that_of_finite_differences(make, inner_steps):
    options = {"num_samples": 2, "inner_lr": 0.05, "initial_log_std": -2.0, "compile": False}  # recording takes seconds
    learner, batch = make[0](inner_steps=inner_steps, **options), make[1]()

    def loss():
        torch.manual_seed(5)
        return learner.training_step(batch, 0)

    learner.zero_grad()
    loss().backward()
    for name, parameter in learner.named_parameters():
        direction = torch.randn_like(parameter)
        slope = float((parameter.grad * direction).sum())
        values = []
        for shift in (1e-5, -2e-5):
            with torch.no_grad():
                parameter += shift * direction
            values.append(float(loss().detach()))
        with torch.no_grad():
            parameter += 1e-5 * direction
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-6), name


def test_the_order_of_the_support_set_does_not_matter():
    learner, batch = regression().eval(), numbers()
    order = torch.randperm(6)
    found = []
    for chosen in (torch.arange(6), order):
        torch.manual_seed(0)
        found.append(learner.adapt(batch.support_x[0][chosen], batch.support_y[0][chosen])(batch.query_x[0]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("bias", [True, False])
def test_before_adaptation_it_is_the_model_itself(bias):
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1, bias=bias))
    learner, batch = AmortizedMAML(model, nn.MSELoss()).eval(), numbers()
    assert not learner.evaluate(batch, steps=0).samples["spread"].any()
    outputs = learner.evaluate(batch, record=(0, 1)).outputs
    torch.testing.assert_close(outputs[:, 0], learner.model(batch.query_x).detach())
    assert not torch.allclose(outputs[:, 1], outputs[:, 0])


def test_whole_numbers_are_targets_of_a_regression():
    batch = numbers()
    learner, y = regression(initial_log_std=-30.0).eval(), torch.arange(6)[:, None]
    found = [learner.adapt(batch.support_x[0], targets)(batch.query_x[0]) for targets in (y, y.double())]
    torch.testing.assert_close(found[0], found[1])


def test_a_head_that_is_certain_has_a_finite_gradient():
    """Where a query repeats the support set and the penalty is tiny, the variance is rounded to 0: no slope of √0."""
    learner = classification(ridge_penalty=1e-9, num_samples=1, initial_log_std=-30.0).float()
    batch = Episode(torch.randn(2, 4, 2), torch.randint(3, (2, 4)), torch.randn(2, 4, 2), torch.randint(3, (2, 4)))
    batch = Episode(*[leaf.float() if leaf.is_floating_point() else leaf for leaf in batch[:4]])
    loss = learner.training_step(batch._replace(query_x=batch.support_x), 0)
    loss.backward()
    assert loss.dtype == learner.adapt(batch.support_x[0], batch.support_y[0])(batch.query_x[0]).dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


def test_nothing_is_left_on_the_model():
    learner = regression()
    learner.training_step(numbers(), 0)
    assert not any(module._forward_hooks for module in learner.modules())


def test_where_learned_numbers_start():
    learner = classification(initial_log_std=-3.0, ridge_penalty=0.5)
    starts = {"log_scale": 5.0, "log_penalty": 0.5, "log_head_std": 1 / math.e}
    for name, start in starts.items():
        assert float(getattr(learner, name).detach().exp()) == pytest.approx(start), name
    assert float(learner.shift.detach()) == 0
    assert all((value == -3).all() for value in learner.log_std.values())
    assert float(regression().noise.log_std.detach()) == 0


def test_more_support_tightens_the_prediction():
    learner = regression(initial_log_std=-30.0, observation_std=0.1).eval()
    x, y, query = torch.randn(40, 2), torch.randn(40, 1), torch.randn(20, 2)
    widths = [float(learner.adapt(x[:n], y[:n]).predict(query).epistemic.mean()) for n in (1, 4, 10, 40)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.3 * widths[0]


def test_ragged_tasks_train_as_each_alone():
    from lightning_meta import collate_episodes

    learner = regression(initial_log_std=-30.0)
    tasks = [numbers(4).select(0), numbers(9).select(1)]

    def gradients(batch):
        learner.zero_grad()
        learner.training_step(batch, 0).backward()
        return {n: p.grad.clone() for n, p in learner.named_parameters() if n.startswith("model")}

    alone = [gradients(collate_episodes([task])) for task in tasks]
    together = gradients(collate_episodes(tasks))
    for name, value in together.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", [True, False])
def test_adaptation_takes_evaluations_draws_in_every_mode(mode):
    learner, batch = regression(num_samples=2, eval_num_samples=4).train(mode), numbers()
    task = learner.adapt(batch.support_x[0], batch.support_y[0])
    assert task.samples(batch.query_x[0]).outputs.shape == (4, 7, 1)
    assert learner.evaluate(batch).samples["outputs"].shape == (2, 4, 7, 1)


@pytest.mark.parametrize("num_samples", [1, 3])
def test_training_encodes_the_support_set_once_for_all_draws(num_samples):
    calls = []

    class Noting(SetEncoder):
        def forward(self, elements):
            calls.append(len(elements))
            return super().forward(elements)

    learner = regression(encoder=Noting(9, 48), num_samples=num_samples)
    drawn = []
    own = learner.query_samples
    learner.query_samples = lambda meta, state, x: drawn.append(len(state)) or own(meta, state, x)
    calls.clear()
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    learner.task_loss(meta, numbers().select(0))
    assert calls == [6]
    assert drawn == [num_samples]


def test_a_subclass_changes_how_tasks_adapt_in_training_and_evaluation_alike():
    class Still(AmortizedMAML):
        def draw_task(self, meta, support, posterior, steps, count):
            posterior = posterior._replace(log_std={n: v - 30 for n, v in posterior.log_std.items()})
            yield from super().draw_task(meta, support, posterior, steps, count)

    learner, batch = Still(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)), nn.MSELoss()), numbers()
    losses = {float(learner.training_step(batch, 0).detach()) for _ in range(2)}
    assert max(losses) - min(losses) < 1e-9
    outputs = learner.evaluate(batch).samples["outputs"]
    torch.testing.assert_close(outputs[:, 0], outputs[:, 1])

    class OnlyEvaluation(AmortizedMAML):
        def inner_loop(self, meta, support, steps):
            yield from super().inner_loop(meta, support, steps)

    with pytest.raises(TypeError, match="OnlyEvaluation overrides inner_loop, which only evaluation calls"):
        OnlyEvaluation(nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 1)), nn.MSELoss())


def test_what_is_generated():
    assert set(regression().generated_names) == {"0.weight", "0.bias"}
    large = AmortizedMAML(Conv4(5, filters=32))
    assert set(large.generated_names) == {
        n for n, p in large.model.named_parameters() if p.ndim == 1 and n != "head.bias"
    }
    for width, all_of_it in ((1000, True), (1001, False)):  # 5,000 parameters in the body, and 5 more
        names = AmortizedMAML(nn.Sequential(nn.Linear(4, width), nn.Linear(width, 1)), nn.MSELoss()).generated_names
        assert ("0.weight" in names) == all_of_it
    wide = nn.Sequential(nn.Linear(2, 80), nn.Tanh(), nn.Linear(80, 80), nn.Tanh(), nn.Linear(80, 1))
    assert set(AmortizedMAML(wide, nn.MSELoss()).generated_names) == {"0.bias", "2.bias"}
    chosen = AmortizedMAML(Conv4(5, filters=8), generate=["norms.*"])
    assert all(name.startswith("norms.") for name in chosen.generated_names)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 must be an integer of at least 1"),
        ({"eval_num_samples": 0}, "eval_num_samples=0 must be an integer of at least 1"),
        ({"head_samples": 0}, "head_samples=0 must be an integer of at least 1"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0 must be a positive number"),
        ({"ridge_penalty": 0.0}, "ridge_penalty=0.0 must be a positive number"),
        ({"generate": ["2.*"]}, "leaves no parameter but the head's"),
        (
            {"encoder": SetEncoder(9, 47)},
            r"encoder gives \(47,\) for one set, but the generated parameters need \(48,\)",
        ),
        ({"encoder": SetEncoder(5, 48)}, r"encoder cannot take a set of shape \[examples, 9\]"),
        ({"encoder": nn.Sequential(nn.BatchNorm1d(9), SetEncoder(9, 48))}, "encoder has batch normalization"),
        ({"encoder": nn.Sequential(nn.Flatten(0), nn.Linear(27, 48))}, "encoder depends on the order of the set"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        regression(**wrong)


def test_a_frozen_encoder_stays():
    learner = regression(encoder=SetEncoder(9, 48).requires_grad_(False))
    learner.training_step(numbers(), 0).backward()
    assert {n for n, p in learner.named_parameters() if p.grad is None} == learner._frozen != set()


def test_an_attention_encoder_fits():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(9, 3, 16)
            self.read = nn.Linear(9, 48)

        def forward(self, elements):
            return self.read(self.layer(elements).mean(0))

    learner = regression(encoder=Attention())
    learner.training_step(numbers(), 0).backward()
    assert all(torch.isfinite(p.grad).all() for p in learner.parameters())


def test_an_encoder_may_round():
    """Sums of another order differ in their last digits, which may be large beside a result near 0."""

    class Rounding(SetEncoder):
        def forward(self, elements):
            return 0 * super().forward(elements) + 1e-6 * elements[0, 0]

    assert regression(encoder=Rounding(9, 48)).generated_names == ("0.weight", "0.bias")


def test_a_frozen_head_stays_and_serves():
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    model[2].requires_grad_(False)
    learner = AmortizedMAML(model, nn.MSELoss())
    learner.training_step(numbers(), 0).backward()
    assert model[2].weight.grad is None
    assert model[0].weight.grad is not None


def test_class_probabilities_are_targets_as_they_are():
    batch = classes()
    soft = nn.functional.one_hot(batch.support_y, 3).double()
    learner = classification(initial_log_std=-30.0).eval()
    x = batch.query_x[0]
    found = []
    for y in (batch.support_y[0], soft[0]):
        torch.manual_seed(0)
        found.append(learner.adapt(batch.support_x[0], y)(x))
    torch.testing.assert_close(found[0], found[1])


def test_models_that_do_not_end_in_a_linear_layer_are_refused():
    with pytest.raises(ValueError, match="model ends in LayerNorm"):
        AmortizedMAML(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))

    class Twice(nn.Sequential):
        def forward(self, x):
            self[1](self[0](x))
            return super().forward(x)

    with pytest.raises(ValueError, match="model.1 is called 2 times"):
        AmortizedMAML(Twice(nn.Linear(2, 4), nn.Linear(4, 1)), nn.MSELoss()).training_step(numbers(), 0)
    deep = Episode(*(torch.randn(2, 6, 5, size) for size in (2, 1, 2, 1)))
    with pytest.raises(ValueError, match=r"\[examples, features\]"):
        AmortizedMAML(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), nn.MSELoss()).training_step(deep, 0)

    class Squeezed(nn.Sequential):
        def forward(self, x):
            return super().forward(x)[:, 0]

    learner = AmortizedMAML(Squeezed(nn.Linear(2, 4), nn.Linear(4, 1)), nn.MSELoss())
    batch = numbers()
    softened = AmortizedMAML(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1), nn.Softplus()), nn.MSELoss())
    with pytest.raises(ValueError, match="a model that returns the head.s output unchanged"):
        softened.training_step(batch, 0)
    flat = batch._replace(support_y=batch.support_y[..., 0], query_y=batch.query_y[..., 0])
    with pytest.raises(ValueError, match="a model that returns the head.s output unchanged"):
        learner.training_step(flat, 0)


def test_logits_are_scaled_and_shifted():
    learner = AmortizedMAML(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), nn.BCEWithLogitsLoss()).eval()
    sets = torch.randn(5, 3), (torch.rand(5, 1) > 0.5).double(), torch.randn(6, 3)
    found = []
    with torch.no_grad():
        for scale, shift in ((1.0, 0.0), (3.0, 0.7)):
            learner.log_scale.fill_(math.log(scale))
            learner.shift.fill_(shift)
            torch.manual_seed(0)
            found.append(learner.adapt(*sets[:2]).samples(sets[2]).outputs)
    torch.testing.assert_close(found[1], 3 * found[0] + 0.7)


def test_checking_an_encoder_draws_no_random_numbers():
    encoder = SetEncoder(4 + 1, 2 * (3 * 4 + 4))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    before = torch.get_rng_state()
    AmortizedMAML(model, nn.MSELoss(), encoder=encoder)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("make", "draw"), [(regression, numbers), (classification, classes)])
def test_half_precision_weights_are_solved_for_in_single_precision(make, draw):
    learner, one = make(inner_steps=2).to(torch.bfloat16), draw()
    x, y, query = (leaf[0].bfloat16() if leaf.is_floating_point() else leaf[0] for leaf in one[:3])
    task = learner.adapt(x, y)
    assert task.state[0].head.weight.dtype == torch.float32
    assert task.predict(query).total.isfinite().all()
