"""Calibration over the queries of all tasks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import Episode
from lightning_meta.callbacks.calibration import ClassCalibration, QuantileCalibration, add_to_calibration


def batch_of(targets, mask=None):
    x = torch.zeros(*targets.shape[:2], 1)
    return Episode(x, targets, x, targets, query_mask=mask)


def report(outputs, **samples):
    return {"outputs": outputs[:, None], "samples": {"outputs": outputs[:, None], **samples}}


def title_of(calibration):
    return calibration.draw().axes[0].get_title()


def test_confidence_that_is_right_has_no_error():
    """Of queries with probability 0.75, three of four are right."""
    scores = torch.tensor([0.75, 0.25]).log().expand(2, 4, 2)
    targets = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 0]])
    calibration = add_to_calibration(None, nn.CrossEntropyLoss(), report(scores), batch_of(targets))
    assert isinstance(calibration, ClassCalibration)
    assert title_of(calibration) == "calibration error 0.00 % over 8 queries"
    calibration = add_to_calibration(calibration, nn.CrossEntropyLoss(), report(scores[:1]), batch_of(targets[:1] * 0))
    assert title_of(calibration) == "calibration error 8.33 % over 12 queries"  # 10 of 12 are right


def test_padding_and_ignored_labels_do_not_count():
    scores = torch.tensor([0.75, 0.25]).log().expand(1, 6, 2)
    targets = torch.tensor([[0, 0, 0, 1, 1, -100]])
    mask = torch.tensor([[True, True, True, True, False, True]])
    calibration = add_to_calibration(None, nn.CrossEntropyLoss(), report(scores), batch_of(targets, mask))
    assert title_of(calibration) == "calibration error 0.00 % over 4 queries"


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 1)])
def test_a_single_logit_is_the_score_of_the_second_class(shape):
    logits = torch.full(shape, 3.0).log()  # probability 0.75
    targets = torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 1]]).reshape(shape)
    calibration = add_to_calibration(None, nn.BCEWithLogitsLoss(), report(logits), batch_of(targets))
    assert title_of(calibration) == "calibration error 0.00 % over 8 queries"


def test_targets_from_the_predictive_distribution_are_below_each_quantile_as_often_as_its_level():
    mean = torch.randn(4, 500, 1)
    targets = mean + 2 * torch.randn(4, 500, 1)
    mask = torch.rand(4, 500) < 0.9
    samples = report(mean, noise=torch.full((4, 1, 500, 1), 4.0))
    calibration = add_to_calibration(None, nn.MSELoss(), samples, batch_of(targets, mask))
    assert isinstance(calibration, QuantileCalibration)
    figure = calibration.draw()
    line = next(line for line in figure.axes[0].lines if line.get_label() == "learner")
    assert len(line.get_xdata()) == int(mask.sum())
    assert abs(line.get_xdata() - line.get_ydata()).max() < 0.04
    standard = ((targets - mean) / 2)[mask]
    inside = 100 * float((standard.abs() <= 1.6448536).float().mean())
    assert title_of(calibration) == f"90 % interval holds {inside:.1f} % of {int(mask.sum())} targets"


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.MSELoss(), torch.zeros(1, 3, 1), torch.zeros(1, 3, 1)),  # without noise
        (nn.BCEWithLogitsLoss(), torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)),
        (nn.CrossEntropyLoss(), torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)),  # soft labels
        (nn.CrossEntropyLoss(), torch.zeros(1, 3, 2, 5), torch.zeros(1, 3, 5).long()),
    ],
)
def test_other_outputs_have_no_calibration(loss, outputs, targets):
    assert add_to_calibration(None, loss, report(outputs), batch_of(targets)) is None
