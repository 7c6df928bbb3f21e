"""The rules of the verdict."""

import math
from dataclasses import replace

import pytest

from lightning_meta.analysis.diagnosis.generalization_gaps import Gaps
from lightning_meta.analysis.diagnosis.verdict import Evidence, verdict
from lightning_meta.analysis.intervals import Interval


def around(mean, half=0.01):
    return Interval(mean, mean - half, mean + half)


NO_GAPS = Gaps(around(0), around(0), around(0), around(0))
UNDETERMINED = Interval(math.nan, math.nan, math.nan)
BASELINES = ("constant", "ridge", "joint", "joint fine-tuned", "from scratch")
GOOD = Evidence(
    score=0.5,
    adaptation=around(1),
    advantages={name: around(0.3) for name in BASELINES},
    index=around(1.2),
    gaps=NO_GAPS,
    more_steps=around(0),
)


def with_gaps(**gaps):
    return replace(GOOD, gaps=NO_GAPS._replace(**gaps))


def with_advantage(name, interval):
    return replace(GOOD, advantages={**GOOD.advantages, name: interval})


def test_better_than_all_baselines():
    found = verdict(GOOD)
    assert found.kind == "pays"
    assert found.missing == ()
    assert "Left out" not in found.advice[0]


def test_baselines_that_were_not_run_are_named():
    few = {name: around(0.3) for name in ("constant", "prototype")}
    found = verdict(replace(GOOD, advantages=few))
    assert found.kind == "pays"
    assert "Left out of this comparison: joint, joint fine-tuned, from scratch." in found.advice[0]


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("advantage", [around(-0.2), around(0, 0.02)])
def test_a_baseline_is_as_good(name, advantage):
    found = verdict(with_advantage(name, advantage))
    assert found.kind == "no gain"
    assert f"'{name}'" in found.advice[0]
    alone = name in ("constant", "ridge", "from scratch")
    assert ("What one task alone tells" in found.advice[0]) == alone


@pytest.mark.parametrize("advantage", [around(0.1, 0.2), UNDETERMINED, Interval(math.inf, math.nan, math.nan)])
def test_wide_intervals_decide_nothing(advantage):
    found = verdict(with_advantage("from scratch", advantage))
    assert found.kind == "cannot tell"
    assert "take more tasks" in found.advice[0]


def test_an_ignored_support_set_with_worse_new_tasks_is_memorized():
    gaps = NO_GAPS._replace(tasks=around(0.3), both=around(0.3))
    found = verdict(replace(GOOD, index=around(0.003), gaps=gaps))
    assert found.kind == "memorized"
    assert "more distinct tasks" in found.missing
    undrawn = gaps._replace(points=None, tasks=None)
    assert verdict(replace(GOOD, index=around(0.003), gaps=undrawn)).kind == "memorized"


def test_an_ignored_support_set_without_gap_is_not_memorized():
    found = verdict(replace(GOOD, index=around(0.003)))
    assert found.kind == "no gain"
    assert "neither is that it has memorized" in found.advice[0]


def test_what_does_not_come_from_adaptation_does_not_pay():
    found = verdict(replace(GOOD, adaptation=around(0)))
    assert found.kind == "no gain"
    assert "does not owe to support sets" in found.advice[0]
    unsure = verdict(replace(GOOD, adaptation=around(0, 0.2)))
    assert unsure.kind == "cannot tell"
    assert "Cannot tell whether adaptation helps" in unsure.advice[0]
    assert verdict(replace(GOOD, adaptation=None)).kind == "pays"


def test_an_uncertain_index():
    found = verdict(replace(GOOD, index=around(0.04, 0.1), gaps=NO_GAPS._replace(tasks=around(0.3))))
    assert found.kind == "pays"
    assert "Cannot tell whether the learner ignores the support set" in found.advice[0]
    assert "support set" not in verdict(replace(GOOD, index=UNDETERMINED)).advice[0]


@pytest.mark.parametrize(
    ("gap", "missing"),
    [("tasks", "more distinct tasks"), ("points", "more points per task"), ("adaptation", "more shots")],
)
def test_what_is_missing(gap, missing):
    assert verdict(with_gaps(**{gap: around(0.2)})).missing == (missing,)
    assert verdict(with_gaps(**{gap: around(0.2, 0.3)})).missing == ()  # the interval includes 0
    assert verdict(with_gaps(**{gap: around(0.02)})).missing == ()  # too small to matter


def test_more_inner_steps():
    assert verdict(replace(GOOD, more_steps=around(0.2))).missing == ("more inner steps",)
    assert verdict(replace(GOOD, more_steps=None)).missing == ()


def test_more_shots_are_no_advice_where_adaptation_does_not_help():
    gaps = NO_GAPS._replace(adaptation=around(0.2))
    found = verdict(replace(GOOD, gaps=gaps, adaptation=around(0)))
    assert found.missing == ()
    assert any("no measurable gain" in sentence for sentence in found.advice)
    assert verdict(replace(GOOD, gaps=gaps, adaptation=None)).missing == ("more shots",)


def test_what_more_tasks_can_bring_is_bounded_with_its_interval():
    advice = verdict(with_gaps(both=around(0.2))).advice
    assert any("no more than the gap between training examples and new tasks, 0.2 (0.19 to 0.21)" in s for s in advice)
    advice = verdict(with_gaps(both=around(-0.2))).advice
    assert any("more tasks alone bring nothing" in sentence for sentence in advice)
