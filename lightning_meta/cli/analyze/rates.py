"""``lightning-meta analyze rates``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import polars as pl

from lightning_meta.algorithms import ImplicitMAML
from lightning_meta.analysis.adjoint import adjoint_errors
from lightning_meta.analysis.intervals import Interval
from lightning_meta.analysis.one_step_rate import one_step_rate
from lightning_meta.analysis.rate_search import RateSearch, search_rate
from lightning_meta.analysis.step_gains import StepGains, step_gains
from lightning_meta.analysis.task_losses import check_has_rate, losses_by_step
from lightning_meta.analysis.tasks import take
from lightning_meta.arguments import check_count
from lightning_meta.cli.analyze import rate_pictures
from lightning_meta.cli.analyze.adjoint_part import adjoint_advice, adjoint_tables, draw_adjoint
from lightning_meta.cli.analyze.report import Report
from lightning_meta.data import TaskDataModule
from lightning_meta.episodes import Episode
from lightning_meta.learners.task_learner import TaskLearner

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN_AROUND = 4.0  # rates in the table: within this factor of those that may be as good
_ADJOINT_TASKS = 20
_ALL_SHOWN = 20  # of more steps the table shows those that are powers of 2

_CONFIRMS_ITSELF = (
    "If this learner was trained, it confirms its own rate: training shapes the curvature to the rate in use, whatever "
    "that is. The rates found here are then for adaptation with these parameters. For the rate to train with, run this "
    "without --ckpt_path, on an untrained learner, and compare short trainings."
)
_TASKS = (
    "Changes of rates are differences from the advised rate's loss on the same tasks. "
    "Intervals are 95 % over validation tasks, each for one comparison: of 20 comparisons without a difference, one "
    "shows one by chance. They hold for new tasks of the same classes; new classes vary more. Rates were chosen on "
    "these tasks, which flatters the advised one: only the fresh tasks were left out of the choice."
)


def rates_report(
    learner: TaskLearner,
    data: TaskDataModule,
    steps: int | None = None,
    tolerance: float = 0.05,
    budget: int = 2_000,
    gain_tasks: int = 100,
    seed: int = 0,
) -> Report:
    """The inner learning rate with the lowest loss after adaptation, and what each inner step gains.

    Args:
        learner: The learner.
        data: Its tasks; the analysis takes validation tasks.
        steps: Inner steps; None: the learner's eval_inner_steps, and its inner_steps if they differ.
        tolerance: A loss that is higher by this share does not matter.
        budget: Evaluations of a task with a rate in a search.
        gain_tasks: Tasks for the gain of each step.
        seed: The seed of the draws of learners that draw.
    """
    adapting, tasks = check_has_rate(learner), data.episodes("val")
    check_count("gain_tasks", gain_tasks, least=2)
    asked = dict.fromkeys((adapting.eval_inner_steps, adapting.inner_steps)) if steps is None else (steps,)
    searches = [search_rate(learner, tasks, number, tolerance, budget, seed=seed) for number in asked]
    batch = take(tasks, min(gain_tasks, len(tasks)), learner.device)
    gains = step_gains(learner, batch, seed=seed)
    advice = [sentence for search in searches for sentence in _rate_advice(search, learner, batch)]
    advice += [_CONFIRMS_ITSELF, _step_advice(gains)]
    values: dict[str, Any] = {"rates": list(map(_values, searches)), "step_gains": list(map(_of, gains.intervals))}
    pictures: dict[str, Callable[[], Figure]] = {
        f"rates_after_{search.steps}": partial(rate_pictures.draw_rates, search) for search in searches
    }
    pictures["step_gains"] = partial(rate_pictures.draw_gains, gains)
    tables = {"Loss after each step with the own rate, and its change by the step": _step_table(gains)}
    if isinstance(learner, ImplicitMAML):
        try:
            errors = adjoint_errors(learner, take(tasks, min(_ADJOINT_TASKS, len(tasks)), learner.device), seed=seed)
        except ValueError as error:
            advice.append(f"The conjugate gradients' error cannot be measured: {error}.")
        else:
            advice += adjoint_advice(errors)
            tables |= adjoint_tables(errors)
            values["adjoint"] = errors._asdict()
            pictures["adjoint"] = partial(draw_adjoint, errors)
    rows = [row for search in searches for row in _rate_rows(search)]
    return Report(pl.DataFrame(rows), (*advice, _TASKS), values, pictures, tables)


def _rate_rows(search: RateSearch) -> Iterator[dict[str, Any]]:
    low, high = search.as_good
    advised_on = search.losses[search.advised].numel()
    for rate, losses in search.losses.items():
        if not (low / _SHOWN_AROUND <= rate <= high * _SHOWN_AROUND or rate == search.own):
            continue
        notes = {"advised": rate == search.advised, "own": rate == search.own}
        notes["may be as good"] = low <= rate <= high and rate != search.advised
        loss = float(losses.mean()) if losses.numel() == advised_on else None  # of fewer tasks it misleads
        note = ", ".join(name for name, holds in notes.items() if holds)
        row = {_name(search): rate, "steps": search.steps, "loss": loss, **_change(search.difference(rate))}
        yield row | {"tasks": min(losses.numel(), advised_on), "note": note}


def _step_table(gains: StepGains) -> pl.DataFrame:
    count, rows = len(gains.intervals), []
    for step, gain in enumerate(gains.intervals, start=1):
        if count <= _ALL_SHOWN or step & (step - 1) == 0 or step == count:
            change = Interval(-gain.mean, -gain.high, -gain.low)
            note = "helps" if step in gains.gaining else "harms" if step in gains.losing else ""
            loss = float(gains.losses[:, step].mean())
            rows.append({"step": step, "loss": loss, **_change(change), "note": note})
    return pl.DataFrame(rows)


def _change(change: Interval) -> dict[str, float]:
    return {"change": change.mean, "from": change.low, "to": change.high}


def _rate_advice(search: RateSearch, learner: TaskLearner, batch: Episode) -> Iterator[str]:
    low, high = search.as_good
    on_fresh = f"on {len(search.fresh_losses)} fresh tasks"
    yield (
        f"With {_steps(search.steps)}, {_name(search)}{_of_what(search)} {search.advised:.3g} is advised. Its loss is "
        f"{search.fresh_interval} {on_fresh}."
    )
    if low < high:
        yield f"Rates from {low:.3g} to {high:.3g} may be as good."
    gain, own = search.fresh_gain, f"the learner's own, {search.own:.3g}"
    if search.advised == search.own:
        yield f"This is {own}."
    elif gain.low > 0:
        yield f"Its loss is lower than that of {own}, by {gain} {on_fresh}."
    elif gain.high < 0:
        yield (
            f"Its loss is higher than that of {own}, by {Interval(-gain.mean, -gain.high, -gain.low)} "
            f"{on_fresh}: keep the own rate, or search with more validation tasks."
        )
    else:
        yield f"Whether its loss is lower than that of {own}, cannot be told: by {gain} {on_fresh}."
    if search.at_edge:
        yield f"{search.advised:.3g} is the outermost rate that was tried: the best may lie beyond."
    if not search.settled:
        yield (
            f"The search ended before it could tell that no rate lowers the loss by {100 * search.tolerance:g} %: "
            "give it more validation tasks (val_tasks of the data module) and a larger --budget."
        )
    if search.steps == 1:
        yield from _closed_form_advice(search, learner, batch)


def _closed_form_advice(search: RateSearch, learner: TaskLearner, batch: Episode) -> Iterator[str]:
    """What a quadratic model says of one step, for learners that adapt the parameters of one model."""
    try:
        found = one_step_rate(learner, batch)
    except ValueError:
        return
    start = f"The closed form for one step, on {batch.num_tasks} tasks, "
    if not found.rate > 0:
        why = (
            "the step raises the query loss" if found.rate < 0 else "the mean curvature along the step is not positive"
        )
        yield f"{start}gives no rate, because {why} in the quadratic model: trust the search."
        return
    closed, advised = (losses_by_step(learner, batch, (1,), rate).mean() for rate in (found.rate, search.advised))
    misleads = " The quadratic model misleads here: trust the search." if closed - advised > 0.1 * abs(advised) else ""
    yield f"{start}gives {found.rate:.3g}, with a loss of {closed:.3g} beside {advised:.3g}.{misleads}"


def _step_advice(gains: StepGains) -> str:
    count, tasks = len(gains.intervals), len(gains.losses)
    helping = f"of {count} inner steps with the learner's own rate, {_ranges(gains.gaining) or 'none'} lower the loss"
    harming = f", and {_ranges(gains.losing)} raise it" if gains.losing else ""
    others = len(gains.gaining) + len(gains.losing) < count
    rest = " The gains of the others are not told apart from zero." if others else ""
    return f"On {tasks} tasks, {helping}{harming}.{rest}"


def _ranges(steps: list[int]) -> str:
    """Write steps as ranges: [1, 2, 3, 6] as "steps 1 to 3, 6"; none as an empty text."""
    starts = [step for step in steps if step - 1 not in steps]
    ends = [step for step in steps if step + 1 not in steps]
    ranges = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(starts, ends, strict=True))
    return f"steps {ranges}" if steps else ""


def _values(search: RateSearch) -> dict[str, Any]:
    rates = [
        {"rate": rate, "loss": float(losses.mean()), "tasks": len(losses), "difference": _of(search.difference(rate))}
        for rate, losses in search.losses.items()
    ]
    names = ("steps", "advised", "own", "is_factor", "settled", "tolerance", "evaluations", "as_good")
    fresh = {"fresh_loss": _of(search.fresh_interval), "fresh_gain": _of(search.fresh_gain)}
    return {name: getattr(search, name) for name in names} | fresh | {"rates": rates}


def _of(interval: Interval) -> dict[str, float]:
    return interval._asdict()


def _name(search: RateSearch) -> str:
    return "factor" if search.is_factor else "inner_lr"


def _of_what(search: RateSearch) -> str:
    return " on the learned rates" if search.is_factor else ""


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
