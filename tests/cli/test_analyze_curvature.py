"""``lightning-meta analyze curvature``: what the report says."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import ANIL, MAML, MLP, ImplicitMAML, MetaSGD, Reptile, SinusoidDataModule
from lightning_meta.analysis import adjoint_errors, curvature
from lightning_meta.analysis.tasks import take
from lightning_meta.cli.analyze.curvature import curvature_report, fixed_rate
from lightning_meta.cli.analyze.quantiles import quantile, quantile_row


@pytest.fixture
def data():
    torch.manual_seed(0)
    found = SinusoidDataModule(shots=5, val_tasks=8)
    found.setup("fit")
    return found


def rows(table):
    first = table.columns[0]
    return {row.pop(first): row for row in table.to_dicts()}


def drawn(report):
    for draw in report.pictures.values():
        buffer = io.BytesIO()
        draw().savefig(buffer, format="png")
        assert buffer.getvalue().startswith(b"\x89PNG")


def test_the_table_has_the_quantiles_over_tasks_and_the_learners_own_rate(data):
    learner = MAML(MLP(hidden=[8]), nn.MSELoss(), inner_lr=0.2)
    report = curvature_report(learner, data, num_tasks=8, steps=8, probes=2)
    found = curvature(learner, take(data.episodes("val"), 8), 8, 2, 0)
    table = rows(report.table)
    for name, level in (("5 %", 5), ("50 %", 50), ("95 %", 95)):
        expected = np.percentile(found.largest, level, method="nearest")
        assert table["eigenvalue λ_max"][name] == pytest.approx(expected)
        assert table["0.2 · λ_max (inner_lr)"][name] == pytest.approx(0.2 * expected)
    above = 100 * float((0.2 * found.largest > 2).double().mean())
    assert any(f"inner_lr=0.2 is above 2/λ_max in {above:.0f} % of the tasks" in said for said in report.advice)
    assert any("not advice about the inner rate" in said for said in report.advice)
    assert not report.more_tables
    assert list(report.pictures) == ["spectrum"]
    drawn(report)


def test_a_convex_loss_is_called_convex(data):
    report = curvature_report(MAML(nn.Linear(1, 1, bias=False), nn.MSELoss()), data, num_tasks=4)
    assert report.advice[0].startswith("In no task is λ_min negative beyond rounding: each support loss is convex")
    assert set(rows(report.table)["share of curvature < 0"].values()) == {0.0}
    drawn(report)


def test_eigenvalues_of_zero_are_not_called_negative_for_their_rounding(data):
    learner = ANIL(MLP(hidden=[40]), nn.MSELoss())  # convex in the head, with more weights than examples
    report = curvature_report(learner, data, num_tasks=8)
    assert any(value < 0 for value in rows(report.table)["eigenvalue λ_min"].values())
    assert report.advice[0].startswith("In no task is λ_min negative beyond rounding")


def test_implicit_maml_has_the_errors_of_its_conjugate_gradients(data):
    learner = ImplicitMAML(MLP(hidden=[8]), nn.MSELoss(), inner_steps=8, prox_lambda=3.0, cg_steps=2)
    report = curvature_report(learner, data, num_tasks=6, steps=8, probes=1, adjoint_steps=10)
    found = adjoint_errors(learner, take(data.episodes("val"), 6), 10)
    system, errors = report.more_tables.values()
    table = rows(system)
    assert found.solved.any()
    assert table["error after cg_steps=2"]["50 %"] == pytest.approx(quantile(found.own_error, 0.5), rel=1e-6)
    assert errors["steps"].to_list() == [1, 2, 3, 4, 5, 7, 10]
    assert errors["50 %"].to_list()[1] == pytest.approx(quantile(found.errors[:, 1], 0.5), rel=1e-6)
    share = 100 * float(found.positive_definite.double().mean())
    assert any(f"H + Λ is positive definite in {share:.0f} % of the tasks" in said for said in report.advice)
    assert list(report.pictures) == ["spectrum", "adjoint"]
    drawn(report)


def test_an_indefinite_system_has_no_bounds_and_says_so(data):
    learner = ImplicitMAML(MLP(hidden=[8]), nn.MSELoss(), inner_steps=1, prox_lambda=1e-4)
    report = curvature_report(learner, data, num_tasks=3, steps=6, probes=1, adjoint_steps=4)
    (system, _) = report.more_tables.values()
    assert all(math.isnan(value) for value in rows(system)["condition number"].values())
    assert all(math.isnan(value) for value in rows(system)["steps to 0.01 by the bound"].values())
    assert any("No error can be told" in said for said in report.advice)
    drawn(report)


def test_arguments_are_checked_first(data):
    learner = MAML(MLP(hidden=[8]), nn.MSELoss())
    for options in ({"num_tasks": 0}, {"num_tasks": -2}, {"adjoint_steps": 0}, {"steps": 0}, {"probes": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}=.* must be an integer of at least 1"):
            curvature_report(learner, data, **{"num_tasks": 4, **options})


def test_only_plain_gradient_descent_has_a_fixed_rate():
    assert fixed_rate(MAML(MLP(), inner_lr=0.3)) == 0.3
    assert fixed_rate(Reptile(MLP(), inner_optimizer="adam")) is None
    assert fixed_rate(MAML(MLP(), inner_optimizer="momentum")) is None
    assert fixed_rate(MetaSGD(MLP())) is None
    assert fixed_rate(ImplicitMAML(MLP(), inner_solver="hessian_free")) is None


def test_quantiles_leave_out_nan_and_keep_infinity():
    values = torch.tensor([1.0, torch.nan, 2.0, 3.0, torch.inf])
    assert quantile(values, 0.5) in (2.0, 3.0)
    assert quantile_row(values)["95 %"] == math.inf
    assert math.isnan(quantile(torch.tensor([torch.nan]), 0.5))
