"""The verdict on tasks of which it is known whether meta-learning pays."""

import functools

import pytest

from lightning_meta.analysis.diagnosis.diagnose import diagnose
from tests.analysis.diagnosis import made_cases

RIGHT = {
    "related": "pays",
    "related_classes": "pays",
    "unrelated_classes": "no gain",
    "unrelated_functions": "no gain",
    "same_classes": "no gain",
    "memorizable": "memorized",
    "memorizable_classes": "memorized",
}


@functools.cache
def verdict_of(case, seed):
    learner, data = getattr(made_cases, case)(seed)
    return diagnose(learner, data, num_tasks=100, tuning_tasks=20, scratch_steps=30)


@pytest.mark.parametrize("case", ["related", "related_classes", "unrelated_classes", "memorizable"])
def test_verdicts(case):
    assert verdict_of(case, 0).verdict.kind == RIGHT[case]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("case", RIGHT)
def test_verdicts_of_other_seeds(case, seed):
    assert verdict_of(case, seed).verdict.kind == RIGHT[case]


def test_a_learner_that_rightly_ignores_the_support_set_has_not_memorized():
    found = verdict_of("same_classes", 0)
    assert found.seen.ratio.high < 0.05
    assert found.verdict.kind == "no gain"
    assert "neither is that it has memorized" in found.verdict.advice[0]
    assert "more distinct tasks" not in found.verdict.missing


def test_few_memorized_tasks_need_more_distinct_ones():
    found = verdict_of("memorizable", 0)
    assert "more distinct tasks" in found.verdict.missing
    assert found.gaps.tasks.is_positive
    assert found.gaps.both.mean == pytest.approx(found.gaps.points.mean + found.gaps.tasks.mean, rel=1e-5)
