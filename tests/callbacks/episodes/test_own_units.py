"""Standardized targets are shown in the units of the data, or named standardized."""

from __future__ import annotations

from types import SimpleNamespace

import polars as pl
import pytest
import torch

from lightning_meta import MAML, MLP, BayesianMAML, Episode
from lightning_meta.callbacks.episodes.episode_figures import draw_episodes
from lightning_meta.callbacks.episodes.record import record_of
from lightning_meta.callbacks.episodes.tables import episode_table
from lightning_meta.data.preparation import ClassTargets, RealTargets

OWN = pl.Series("y", [70.0, 82.0, 75.0, 90.0, 60.0, 81.0])
TARGETS = RealTargets(80.0, 16.0)
PREPARATION = SimpleNamespace(targets=TARGETS)


def shown(learner, inputs):
    x, y = torch.randn(1, 6, inputs), TARGETS.standardized(OWN)[None]
    return record_of(learner, [Episode(x, y, x, y)], {"mse": torch.rand(1), "mse_pre": torch.rand(1)}, 1).episodes


def test_the_table_is_in_own_units():
    episodes = shown(BayesianMAML(MLP(3, hidden=[4]), torch.nn.MSELoss(), num_particles=3), 3)
    standardized = episode_table(episodes, 6).columns
    columns = episode_table(episodes, 6, PREPARATION).columns
    assert columns["truth"] == pytest.approx(2 * OWN.to_list())
    for name, shift in (("prediction", 80.0), ("uncertainty", 0.0), ("epistemic", 0.0)):
        expected = [16.0 * value + shift for value in standardized[name][6:]]
        assert columns[name][6:] == pytest.approx(expected, rel=1e-5)
    assert episode_table(episodes, 6, SimpleNamespace(targets=ClassTargets())).columns == standardized


def test_predictions_against_targets_are_drawn_in_own_units():
    episodes = shown(BayesianMAML(MLP(3, hidden=[4]), torch.nn.MSELoss(), num_particles=3), 3)
    axis = draw_episodes(episodes, PREPARATION).axes[0]
    (bars,) = axis.containers
    assert bars.lines[0].get_xdata() == pytest.approx(OWN.to_numpy())
    prediction = episodes[0].prediction
    assert bars.lines[0].get_ydata() == pytest.approx(prediction.mean.flatten().numpy() * 16 + 80)
    (segments,) = bars.lines[2]
    heights = [float(segment[1, 1] - segment[0, 1]) for segment in segments.get_segments()]
    assert heights == pytest.approx((4 * 16 * prediction.total.sqrt().flatten()).tolist(), rel=1e-4)
    assert axis.get_xlabel() == "target"


@pytest.mark.parametrize(("preparation", "label"), [(None, "target"), (PREPARATION, "target (standardized)")])
def test_the_axis_of_curves_says_whether_it_is_standardized(preparation, label):
    figure = draw_episodes(shown(MAML(MLP(1, hidden=[4]), torch.nn.MSELoss()), 1), preparation)
    assert figure.axes[0].get_ylabel() == label
