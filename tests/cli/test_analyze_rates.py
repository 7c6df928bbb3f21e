"""``lightning-meta analyze rates``: what its report says."""

from __future__ import annotations

import json

import pytest
from torch import nn

from lightning_meta import MAML, MLP, ImplicitMAML, MetaSGD, ProtoNet, SinusoidDataModule
from lightning_meta.analysis import search_rate
from lightning_meta.cli.analyze.rates import rates_report


@pytest.fixture
def data():
    return SinusoidDataModule(shots=5, val_tasks=200)


def learner_of(cls=MAML, **options):
    return cls(MLP(hidden=[8]), nn.MSELoss(), **options)


def said(report, words):
    return [sentence for sentence in report.advice if words in sentence]


def test_it_answers_for_both_numbers_of_steps(data):
    learner = learner_of(inner_lr=0.001, inner_steps=1, eval_inner_steps=5)
    report = rates_report(learner, data, gain_tasks=20)
    assert [found["steps"] for found in report.values["rates"]] == [5, 1]
    found = search_rate(learner, data.episodes("val"))
    values = report.values["rates"][0]
    assert values["advised"] == found.advised
    assert values["fresh_gain"]["mean"] == found.fresh_gain.mean
    assert said(report, f"With 5 steps, inner_lr {found.advised:.3g} is advised")
    assert said(report, "With 1 step, inner_lr")
    assert said(report, "confirms its own rate")
    assert len(said(report, "The closed form for one step")) == 1
    assert len(report.values["step_gains"]) == 10
    advised = report.table.filter(report.table["note"].str.contains("advised"))
    assert advised["steps"].to_list() == [5, 1]
    assert advised["inner_lr"].to_list() == [found["advised"] for found in report.values["rates"]]
    (steps,) = report.more_tables.values()
    assert steps["step"].to_list() == list(range(1, 11))
    assert steps["change"].to_list() == pytest.approx([-gain["mean"] for gain in report.values["step_gains"]])


def test_it_is_saved_with_pictures(data, tmp_path):
    report = rates_report(learner_of(inner_lr=0.01, eval_inner_steps=3), data, steps=3, gain_tasks=20)
    report.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"rates_after_3.png", "report.json", "step_gains.png"}
    (found,) = json.loads((tmp_path / "report.json").read_text())["values"]["rates"]
    assert any(rate["loss"] == "inf" for rate in found["rates"])  # rates at which tasks diverge are kept


def test_the_own_rate_is_named_where_it_is_the_advised_one(data):
    first = rates_report(learner := learner_of(inner_lr=0.01), data, gain_tasks=20).values["rates"][0]
    learner.inner_lr = learner.inner_rates.inner_lr = first["advised"]
    report = rates_report(learner, data, gain_tasks=20)
    own = report.values["rates"][0]
    assert bool(said(report, "This is the learner's own")) == (own["advised"] == own["own"])
    assert report.table.filter(inner_lr=own["own"]).height == 1


def test_learned_rates_have_a_factor(data):
    report = rates_report(learner_of(MetaSGD, inner_lr=0.001), data, gain_tasks=20)
    assert report.values["rates"][0]["own"] == 1
    assert said(report, "factor on the learned rates")


def test_implicit_maml_has_the_errors_of_its_adjoint(data):
    learner = learner_of(ImplicitMAML, inner_lr=0.01, inner_steps=2, prox_lambda=10.0)
    report = rates_report(learner, data, gain_tasks=20)
    assert said(report, "positive definite")
    assert report.values["adjoint"]["own_error"].shape == (20,)


def test_steps_that_harm_are_named(data):
    learner = learner_of(inner_lr=0.5, inner_steps=2)
    report = rates_report(learner, data, gain_tasks=20)
    assert said(report, "raise it")


def test_a_small_budget_ends_unsettled(data):
    report = rates_report(learner_of(inner_lr=0.01), data, budget=2, tolerance=1e-6, gain_tasks=20)
    assert said(report, "The search ended before")


def test_too_few_tasks_for_gains_are_told_before_the_search(data, monkeypatch):
    learner = learner_of()
    monkeypatch.setattr(learner, "map_tasks", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="gain_tasks=1 must be an integer of at least 2"):
        rates_report(learner, data, gain_tasks=1)


def test_learners_without_a_rate_are_refused(data):
    with pytest.raises(ValueError, match="has no inner learning rate"):
        rates_report(ProtoNet(MLP()), data)
