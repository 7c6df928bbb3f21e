"""Rules that turn results into a verdict and sentences of advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_meta.analysis.diagnosis.generalization_gaps import Gaps
from lightning_meta.analysis.intervals import Interval

MEMORIZED_BELOW = 0.05
"""The memorization index below which a support set counts as ignored."""

NOTABLE_SHARE = 0.1
"""The share of the score on new tasks from which a gap is worth acting on."""

ALONE = ("constant", "prototype", "ridge", "from scratch")
"""Baselines that take nothing from other tasks."""

JOINT = ("joint", "joint fine-tuned")
"""Baselines that learn from all tasks without learning to adapt."""

Kind = Literal["memorized", "no gain", "pays", "cannot tell"]


@dataclass(frozen=True)
class Evidence:
    """What the verdict is made from. Scores are error rates in classification and losses in regression.

    Attributes:
        score: The learner's mean score on new tasks.
        adaptation: How much adaptation lowers it, paired; None for learners without inner steps.
        advantages: By baseline, its score minus the learner's, paired: positive where the learner is better.
        index: The memorization index on training tasks.
        gaps: The generalization gaps.
        more_steps: How much twice as many inner steps lower the score, paired; None for learners without them.
    """

    score: float
    adaptation: Interval | None
    advantages: Mapping[str, Interval]
    index: Interval
    gaps: Gaps
    more_steps: Interval | None


class Verdict(NamedTuple):
    """A verdict.

    Attributes:
        kind: In short.
        missing: What would help, of "more distinct tasks", "more points per task", "more shots", "more inner steps".
        advice: Whole sentences.
    """

    kind: Kind
    missing: tuple[str, ...]
    advice: tuple[str, ...]


def verdict(evidence: Evidence) -> Verdict:
    """Say whether meta-learning pays, and what is missing."""
    kind, sentences = _kind(evidence)
    missing, reasons = _missing(evidence, kind)
    return Verdict(kind, missing, (*sentences, *reasons))


def _kind(evidence: Evidence) -> tuple[Kind, list[str]]:
    index, gaps = evidence.index, evidence.gaps
    sentences = []
    if index.high < MEMORIZED_BELOW:
        ignored = (
            "The learner ignores the support set: on training tasks another task's support set does as well "
            f"(memorization index {index}, below {MEMORIZED_BELOW})"
        )
        gap = gaps.both if gaps.tasks is None else gaps.tasks
        if _is_notable(gap, evidence.score):
            return "memorized", [
                f"{ignored}. It does worse on new tasks: it has memorized what inputs say about training tasks. Remove "
                "inputs that identify the task, number classes anew in each task, or train with more distinct tasks."
            ]
        sentences.append(
            f"{ignored}. That it does notably worse on new tasks is not shown (gap {gap}), and so neither is that it "
            "has memorized the training tasks."
        )
    elif index.mean < MEMORIZED_BELOW:
        sentences.append(
            f"Cannot tell whether the learner ignores the support set: its memorization index is {index}. "
            "Take more tasks."
        )
    margin = NOTABLE_SHARE * abs(evidence.score)
    gains = evidence.advantages
    as_good = [name for name, gain in gains.items() if not gain.is_positive and gain.high <= margin]
    undecided = [name for name, gain in gains.items() if not gain.is_positive and name not in as_good]
    if as_good:
        sentences.append(f"The learner is no better than {_listed(as_good, gains)}. {_meaning(as_good)}")
        return "no gain", sentences
    adaptation = evidence.adaptation
    adapts = adaptation is None or adaptation.is_positive
    if index.high < MEMORIZED_BELOW or (adaptation is not None and not adapts and adaptation.high <= margin):
        sentences.append(
            "What it does well, it does not owe to support sets: a model of all tasks without adaptation, trained as "
            "well and as long, should do as well."
        )
        return "no gain", sentences
    if undecided:
        sentences.append(f"Cannot tell whether the learner beats {_listed(undecided, gains)}: take more tasks.")
        return "cannot tell", sentences
    if not adapts:
        sentences.append(f"Cannot tell whether adaptation helps (before minus after: {adaptation}): take more tasks.")
        return "cannot tell", sentences
    left_out = [name for name in (*JOINT, "from scratch") if name not in gains]
    besides = f" Left out of this comparison: {', '.join(left_out)}." if left_out else ""
    closest = min(gains, key=lambda name: gains[name].mean)
    sentences.append(
        "Meta-learning pays on these tasks: the learner is better than every baseline beyond the intervals; the "
        f"closest is {_listed([closest], gains)}.{besides}"
    )
    return "pays", sentences


def _meaning(as_good: Sequence[str]) -> str:
    if any(name in ALONE for name in as_good):
        return (
            "What one task alone tells, or nothing at all, is as good: either the tasks share nothing that helps, or "
            "the learner is not trained well enough to show it."
        )
    return (
        "One model of all tasks, without learning to adapt, is as good: either the tasks differ too little, or they "
        "differ in a way that their support sets do not tell."
    )


def _listed(names: Sequence[str], gains: Mapping[str, Interval]) -> str:
    return ", ".join(f"the baseline '{name}' (its score minus the learner's: {gains[name]})" for name in names)


def _missing(evidence: Evidence, kind: Kind) -> tuple[tuple[str, ...], list[str]]:
    gaps, score = evidence.gaps, evidence.score
    missing, reasons = [], []
    if _is_notable(gaps.tasks, score):
        missing.append("more distinct tasks")
        reasons.append(
            f"New tasks are harder than training tasks (tasks gap {gaps.tasks}): train with more of them, which "
            "in tasks of classes means more classes."
        )
    if _is_notable(gaps.points, score):
        missing.append("more points per task")
        reasons.append(
            f"New examples of training tasks are harder than those of the training (points gap {gaps.points}): get "
            "more examples of each task, or draw a task's support and query sets anew in each epoch."
        )
    if gaps.both.high > 0:
        reasons.append(
            f"More training tasks alone can lower the score {score:.3g} by no more than the gap between training "
            f"examples and new tasks, {gaps.both}."
        )
    elif gaps.both.high <= 0:
        reasons.append(
            f"New tasks are not harder than training examples ({gaps.both}): more tasks alone bring nothing."
        )
    else:
        reasons.append("Cannot tell whether new tasks are harder than training examples, because tasks diverge.")
    helps = evidence.adaptation is None or evidence.adaptation.is_positive
    if helps and kind in ("pays", "cannot tell") and _is_notable(gaps.adaptation, score):
        missing.append("more shots")
        reasons.append(
            f"Adapted models fit support sets better than queries (adaptation gap {gaps.adaptation}): more support "
            "examples may help."
        )
    if evidence.more_steps is not None and _is_notable(evidence.more_steps, score):
        missing.append("more inner steps")
        reasons.append(f"Twice as many inner steps lower the score by {evidence.more_steps}: take more.")
    if evidence.adaptation is not None and not evidence.adaptation.is_positive:
        reasons.append(f"The inner steps bring no measurable gain (before minus after: {evidence.adaptation}).")
    if not missing:
        reasons.append("No single lack is measurable with these tasks.")
    return tuple(missing), reasons


def _is_notable(gap: Interval | None, score: float) -> bool:
    return gap is not None and gap.is_positive and (math.isinf(gap.mean) or gap.mean > NOTABLE_SHARE * abs(score))
