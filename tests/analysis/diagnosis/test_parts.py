"""The parts of a diagnosis, against naive computations."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, MetaSGD, ProtoNet, SinusoidDataModule
from lightning_meta.algorithms.baselines import MeanTarget, RidgeClassifier
from lightning_meta.analysis.diagnosis.data_curves import compare_gains, gains, shot_curve, task_curve
from lightning_meta.analysis.diagnosis.generalization_gaps import generalization_gaps
from lightning_meta.analysis.diagnosis.memorization import memorization, with_other_support, with_permuted_labels
from lightning_meta.analysis.diagnosis.reference_learners import RATES, constant_scores, trained_on_each_task
from lightning_meta.analysis.diagnosis.scores import Scores, evaluating, scores_by_step, scores_of
from lightning_meta.analysis.fresh_model import fresh_learner
from lightning_meta.data.distinct_tasks import DistinctTasks
from lightning_meta.episodes import Episode, collate_episodes

TASKS = SinusoidDataModule(shots=4, query_shots=6)


def batch(count=5, split="val", first=0):
    return TASKS.episodes(split).make(np.arange(first, first + count))


def maml(**options):
    return MAML(MLP(1, 1, hidden=[8]), nn.MSELoss(), inner_lr=0.05, inner_steps=2, **options)


def test_scores_are_those_of_adapted_models():
    learner, tasks = maml(), batch(30)
    by_step = scores_by_step(learner, tasks, range(4))
    assert by_step.loss.shape == (4, 30)
    assert by_step.accuracy is None
    for step, index in ((1, 0), (3, 29)):
        task = tasks.select(index)
        adapted = learner.adapt(task.support_x, task.support_y, step)
        expected = (adapted(task.query_x) - task.query_y).square().mean()
        assert float(by_step.loss[step, index]) == pytest.approx(float(expected), rel=1e-4)


def test_diverging_tasks_have_an_infinite_loss():
    tasks = batch()
    tasks = tasks._replace(support_y=tasks.support_y * torch.tensor([1, 1, 1e30, 1, 1])[:, None, None])
    loss = scores_of(maml(), tasks, 8).loss
    assert loss.isinf().tolist() == [False, False, True, False, False]


def test_absent_classes():
    x, y = torch.randn(2, 6, 3), torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]])
    scores = scores_of(ProtoNet(nn.Flatten()), Episode(x, y, x, y.roll(1, 0)))
    assert scores.loss.isinf().tolist() == [True, False]
    assert ((scores.accuracy >= 0) & (scores.accuracy <= 1)).all()


def test_modules_keep_their_modes():
    learner = maml().train()
    learner.model.eval()
    with evaluating(learner):
        assert not learner.training
    assert learner.training
    assert not learner.model.training


def test_support_sets_are_exchanged():
    tasks = batch(3)
    other = with_other_support(tasks)
    assert torch.equal(other.support_x[2], tasks.support_x[0])
    assert torch.equal(other.support_y[0], tasks.support_y[1])
    assert torch.equal(other.query_x, tasks.query_x)


def test_labels_are_permuted_among_the_examples_that_count():
    single = [TASKS.episodes("val")[i] for i in range(2)]
    short = single[1]._replace(support_x=single[1].support_x[:2], support_y=single[1].support_y[:2])
    tasks = collate_episodes([single[0], short])
    changed = with_permuted_labels(tasks, seed=1)
    assert torch.equal(changed.support_x, tasks.support_x)
    assert torch.equal(changed.support_y.sort(1).values, tasks.support_y.sort(1).values)
    assert (changed.support_y[1, 2:] == 0).all()
    assert not torch.equal(changed.support_y[0], tasks.support_y[0])


def test_the_memorization_index():
    tasks = batch(40)
    constant = constant_scores(maml(), tasks)
    mean = [(tasks.query_y[i] - tasks.support_y[i].mean()).square().mean() for i in range(40)]
    assert torch.allclose(constant.loss, torch.stack(mean))
    worse = Scores(constant.loss + 2, None)
    found = memorization(MeanTarget(), tasks, worse)
    other = torch.stack([(tasks.query_y[i] - tasks.support_y[(i + 1) % 40].mean()).square().mean() for i in range(40)])
    assert found.ratio.mean == pytest.approx(float((other - constant.loss).mean()) / 2, rel=1e-4)
    assert torch.equal(found.own.loss, found.permuted.loss) or torch.allclose(found.own.loss, found.permuted.loss)
    with pytest.raises(ValueError, match="at least 2 tasks"):
        memorization(MeanTarget(), batch(1), constant)


def test_gaps():
    trained, redrawn, new = batch(8, "train"), batch(8, "train", 8), batch(9)
    learner = maml()
    found = generalization_gaps(learner, trained, redrawn, new)
    losses = {name: learner.evaluate(tasks).loss for name, tasks in (("t", trained), ("r", redrawn), ("n", new))}
    assert found.points.mean == pytest.approx(float((losses["r"] - losses["t"]).mean()), rel=1e-4)
    assert found.tasks.mean == pytest.approx(float(losses["n"].mean() - losses["r"].mean()), rel=1e-4)
    assert found.both.mean == pytest.approx(float(losses["n"].mean() - losses["t"].mean()), rel=1e-4)
    own = [learner.adapt(t.support_x, t.support_y) for t in (new.select(i) for i in range(9))]
    support = torch.stack([(task(new.support_x[i]) - new.support_y[i]).square().mean() for i, task in enumerate(own)])
    assert found.adaptation.mean == pytest.approx(float((losses["n"] - support).mean()), rel=1e-4)
    assert generalization_gaps(learner, trained, None, new).points is None


def test_constant_predictions_of_classes():
    y = torch.tensor([[0, 1, 2, 3]] * 2)
    found = constant_scores(RidgeClassifier(), Episode(torch.randn(2, 4, 3), y, torch.randn(2, 4, 3), y))
    assert found.loss.tolist() == pytest.approx([math.log(4)] * 2)
    assert found.accuracy.tolist() == [0.25, 0.25]


def test_training_on_each_task_chooses_on_other_tasks_as_a_loop_with_adam_does():
    reported, tuning = batch(3), batch(4, first=3)
    model = MLP(1, 1, hidden=[4])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = trained_on_each_task(model, maml(), reported, tuning, 10)

    def by_hand(tasks, rate, steps):
        losses = []
        for index in range(tasks.num_tasks):
            model.load_state_dict(start)
            optimizer = torch.optim.Adam(model.parameters(), lr=rate)
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(tasks.support_x[index]), tasks.support_y[index]).backward()
                optimizer.step()
            losses.append(nn.functional.mse_loss(model(tasks.query_x[index]), tasks.query_y[index]).detach())
        return torch.stack(losses)

    means = {(rate, steps): float(by_hand(tuning, rate, steps).mean()) for rate in RATES for steps in (1, 3, 10)}
    rate, steps = min(means, key=means.get)
    assert found.chosen == f"rate {rate:g}, {steps} steps"
    assert found.at_most_steps == (steps == 10)
    assert torch.allclose(found.scores.loss, by_hand(reported, rate, steps), rtol=1e-3)


def test_fresh_learners():
    learner = MetaSGD(MLP(1, 1, hidden=[4]), nn.MSELoss(), inner_lr=0.3)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.fill_(7)
    fresh = fresh_learner(learner, "leave it out")
    assert all((p == 7).all() for p in learner.parameters())
    for name, parameter in fresh.named_parameters():
        expected = parameter == 0.3 if name.startswith("inner_rates") else parameter.abs() < 5
        assert expected.all()
    learner.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="such as scale.*leave it out"):
        fresh_learner(learner, "leave it out")


def test_curves():
    learner, new = maml(), batch(10)
    state = {name: value.clone() for name, value in learner.state_dict().items()}
    train = TASKS.episodes("train")
    curve = task_curve(learner, lambda size: DistinctTasks(train, size, False), [8, 2], 3, 4, new)
    again = task_curve(learner, lambda size: DistinctTasks(train, size, False), [8], 3, 4, new)
    assert list(curve) == [2, 8]
    assert torch.equal(curve[8].loss, again[8].loss)
    assert not torch.equal(curve[8].loss, curve[2].loss)
    assert all(torch.equal(value, state[name]) for name, value in learner.state_dict().items())
    shots = shot_curve(learner, TASKS.episodes("val"), [8, 4], 10)
    assert torch.allclose(shots[4].loss, scores_of(learner, new).loss)
    assert gains(shots)[4, 8].mean == pytest.approx(float((shots[4].loss - shots[8].loss).mean()), rel=1e-4)


def curve_of(*scores):
    return {
        2**i: Scores(torch.full((20,), score) + torch.arange(20) % 2 * 0.01, None) for i, score in enumerate(scores)
    }


def test_advice_on_tasks_or_shots():
    steep, flat = curve_of(4.0, 2.0), curve_of(4.0, 3.5)
    assert compare_gains(steep, flat, 1).startswith("More training tasks brought more")
    assert compare_gains(flat, steep, 1).startswith("More shots brought more")
    assert compare_gains(flat, flat, 1).startswith("Cannot tell")
    assert compare_gains(flat, flat, 2) == ""  # nothing larger than the current number of shots
