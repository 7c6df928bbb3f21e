"""Pictures of tasks hold what they should."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import nn

from lightning_meta import MAML, MLP, AmortizedMAML, BayesianMAML, Conv4, Episode
from lightning_meta.callbacks.episodes.episode_figures import draw_episodes
from lightning_meta.callbacks.episodes.figures import draw_adaptation, draw_difficulty, draw_rates
from lightning_meta.callbacks.episodes.outlets import rendered
from lightning_meta.callbacks.episodes.record import Curve, Record, record_of
from lightning_meta.callbacks.episodes.tables import episode_table, evenly_spread

_NOTHING = Record("mse", None, None, None, [])


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


def test_curves_of_earlier_evaluations_stay_in_the_picture():
    records = [
        (step, _NOTHING._replace(curve=Curve([0, 1, 2], [3.0, 2.0, 4.0 / (1 + step)], [0.1] * 3, "the 4 shown tasks")))
        for step in range(0, 2000, 100)
    ]
    figure = draw_adaptation("mse", records, "over tasks of these classes")
    assert figure.get_suptitle() == "means with their 95 % intervals over tasks of these classes"
    (axis,) = figure.axes
    labels = [line.get_label() for line in axis.lines]
    assert labels[0] == "training step 0"
    assert labels[-1] == "training step 1900"
    assert len(labels) == 8
    assert axis.lines[-1].get_ydata()[-1] == 4.0 / 1901
    assert axis.get_ylabel() == "mean squared error on queries"
    assert axis.get_xlabel() == "inner steps taken"
    assert axis.get_title() == "mean over the 4 shown tasks"
    assert draw_adaptation("mse", [(0, _NOTHING)]) is None


def test_the_histogram_counts_tasks_before_and_after():
    values = {"acc": torch.tensor([0.0, 0.5, 0.52, 1.0]), "acc_pre": torch.tensor([0.2, 0.2, 0.2, 0.4])}
    (axis,) = draw_difficulty("acc", values, "over tasks of these classes").axes
    heights = [patch.get_height() for patch in axis.patches if isinstance(patch, matplotlib.patches.Rectangle)]
    assert sum(heights[:20]) == 4
    assert heights[10] == 2
    assert "mean 0.505 ± 0.4,\n95 % interval over tasks of these classes" in texts_of(axis)
    assert axis.get_title() == "4 tasks"


def test_values_that_are_not_finite_are_left_out_of_the_histogram():
    infinite = [float("inf"), float("nan"), -float("inf")]
    values = {"mse": torch.tensor([1.0, 3.0, *infinite]), "mse_pre": torch.tensor([2.0, 2.0, *infinite])}
    figure = draw_difficulty("mse", values)
    assert rendered(figure).std() > 5
    assert figure.axes[0].get_title() == "2 tasks, 3 of 5 tasks are not finite"
    assert any(text.startswith("mean 2 ±") for text in texts_of(figure))
    assert draw_difficulty("mse", {"mse": torch.tensor(infinite)}) is None


def test_curves_that_are_not_finite_are_drawn_where_they_are():
    curve = Curve([0, 1, 2], [3.0, float("inf"), float("nan")], [0.1, float("nan"), float("nan")], "the 2 shown tasks")
    assert rendered(draw_adaptation("mse", [(0, _NOTHING._replace(curve=curve, gradient_norm=curve))])).std() > 5


@pytest.mark.parametrize("values", [[2.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 5.0], [1e-12, 3.0]])
def test_any_errors_have_a_histogram(values):
    figure = draw_difficulty("loss", {"loss": torch.tensor(values)})
    assert rendered(figure).std() > 5
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert sum(height for height in heights[:24] if height >= 1) == len(values)


def test_learned_rates_are_drawn_by_parameter():
    rates = {"a.weight": torch.tensor([[0.1, 0.3]]), "b.bias": torch.tensor(0.5)}
    (axis,) = draw_rates(rates, 0.2).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a.weight", "b.bias"]
    means = next(line for line in axis.lines if line.get_label() == "mean")
    assert means.get_xdata() == pytest.approx([0.2, 0.5])


def pictures():
    shapes = (2, 5, 1, 16, 16), (2, 10, 1, 16, 16)
    support, query = (torch.rand(shape) for shape in shapes)
    return Episode(support, torch.arange(5).expand(2, 5), query, torch.arange(5).repeat(2).expand(2, 10))


def test_pictures_show_class_prediction_and_truth():
    learner = MAML(Conv4(5, filters=4), inner_lr=0.1)
    batch = pictures()
    episodes = record_of(learner, [batch], {"acc": torch.rand(2), "acc_pre": torch.rand(2)}, 2).episodes
    figure = draw_episodes(episodes)
    assert len(figure.axes) == 2
    texts = texts_of(figure)
    assert texts.count("class 3") == 2
    predicted = episodes[0].prediction.mean.argmax(1)
    wrong = [text for text in texts_of(figure.axes[0]) if "is" in text.split()]
    assert len(wrong) == int((predicted != batch.query_y[0]).sum())
    tiles = [image.get_array() for image in figure.axes[0].images]
    assert len(tiles) == 15
    assert np.abs(tiles[0][..., 0] - 255 * batch.support_x[0, 0, 0].numpy()).max() <= 0.5
    table = episode_table(episodes, 4)
    assert list(table.columns)[:4] == ["task", "set", "picture", "truth"]
    assert table.columns["picture"][0].shape == (16, 16, 3)
    assert table.columns["confidence"][-1] == pytest.approx(float(episodes[1].prediction.mean[9].max()))
    assert table.columns["correct"][-1] == bool(episodes[1].prediction.mean[9].argmax() == 4)


def test_ignored_labels_are_neither_right_nor_wrong():
    values = {"acc": torch.ones(2), "acc_pre": torch.ones(2)}
    shown, _ = record_of(MAML(Conv4(5, filters=4), inner_lr=0.1), [pictures()], values, 2).episodes
    predicted = shown.prediction.mean.argmax(1)
    labels = torch.cat([predicted[:3], (predicted[3:4] + 1) % 5, torch.full((6,), -100)])
    nothing, shown = (shown._replace(task=shown.task._replace(query_y=own)) for own in (labels * 0 - 100, labels))
    assert draw_episodes([nothing]).axes[0].get_title(loc="left").endswith("prediction and probability")
    figure = draw_episodes([shown])
    assert figure.axes[0].get_title(loc="left").endswith("75 % of 4 right")
    assert sum("is" in text.split() for text in texts_of(figure)) == 1
    assert episode_table([shown], 10).columns["correct"][5:] == [True] * 3 + [False] + [None] * 6


@pytest.mark.parametrize("learner", [MAML, AmortizedMAML])
def test_regressions_of_many_inputs_are_drawn_against_their_targets(learner):
    sets = torch.randn(1, 6, 3), torch.randn(1, 6, 1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    record = record_of(
        learner(model, nn.MSELoss()), [Episode(*sets, *sets)], {"mse": torch.rand(1), "mse_pre": torch.rand(1)}, 1
    )
    figure = draw_episodes(record.episodes)
    assert figure.axes[0].get_xlabel() == "target"
    assert rendered(figure).std() > 5


def test_tasks_in_bfloat16_are_recorded_in_its_context_and_drawn_outside():
    learner = MAML(nn.Linear(3, 2), nn.MSELoss()).to(torch.bfloat16)
    sets = torch.randn(1, 6, 3, dtype=torch.bfloat16), torch.randn(1, 6, 2, dtype=torch.bfloat16)
    values = {"mse": torch.ones(1), "mse_pre": torch.ones(1)}
    with HalfPrecision("bf16-true").forward_context():
        record = record_of(learner, [Episode(*sets, *sets)], values, 1)
    assert rendered(draw_episodes(record.episodes)).std() > 5
    assert record.episodes[0].task.query_y.dtype == record.episodes[0].prediction.mean.dtype == torch.float32
    norms = record.gradient_norm.mean
    assert norms != torch.tensor(norms).bfloat16().tolist()


def test_tasks_of_vectors_and_classes_have_no_picture():
    x, y = torch.randn(1, 6, 3), torch.arange(6)[None] % 3
    record = record_of(
        MAML(nn.Linear(3, 3)), [Episode(x, y, x, y)], {"acc": torch.rand(1), "acc_pre": torch.rand(1)}, 1
    )
    assert draw_episodes(record.episodes) is None


def test_a_single_logit_is_shown_as_two_classes():
    x, y = torch.randn(1, 6, 3), (torch.arange(6) % 2).float()[None, :, None]
    learner = MAML(nn.Linear(3, 1), nn.BCEWithLogitsLoss())
    (shown,) = record_of(learner, [Episode(x, y, x, y)], {"acc": torch.rand(1), "acc_pre": torch.rand(1)}, 1).episodes
    assert draw_episodes([shown]) is None
    columns = episode_table([shown], 6).columns
    positive = shown.prediction.mean.flatten()
    assert columns["prediction"][6:] == (positive > 0.5).long().tolist()
    assert columns["confidence"][6:] == pytest.approx(torch.maximum(positive, 1 - positive).tolist())
    assert columns["correct"][6:] == ((positive > 0.5) == (y.flatten() > 0.5)).tolist()
    assert columns["uncertainty"][6:] == pytest.approx(shown.prediction.total.flatten().tolist())


def test_uncertainty_of_real_targets_is_a_standard_deviation():
    x, y = torch.randn(1, 6, 1), torch.randn(1, 6, 1)
    learner = BayesianMAML(MLP(hidden=[4]), nn.MSELoss(), num_particles=3)
    (shown,) = record_of(learner, [Episode(x, y, x, y)], {"mse": torch.rand(1), "mse_pre": torch.rand(1)}, 1).episodes
    columns = episode_table([shown], 6).columns
    assert columns["uncertainty"][6:] == pytest.approx(shown.prediction.total.sqrt().flatten().tolist())
    assert columns["epistemic"][6:] == pytest.approx(shown.prediction.epistemic.sqrt().flatten().tolist())


def test_examples_are_spread_over_the_set():
    assert evenly_spread(3, 10).tolist() == [0, 1, 2]
    assert evenly_spread(9, 3).tolist() == [0, 4, 8]
    assert evenly_spread(9, 1).tolist() == [0]
