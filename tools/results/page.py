"""The page of results, written from the records in ``results/``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.results.record import Record, digest_of
from tools.results.tables import budgets, configuration_bytes, tables

_INTRODUCTION = """\
# Results

`make results` runs each shipped configuration, keeps what it reached in `results/`, and writes this page. Figures are
means over test tasks, ± the half-width of their 95 % interval over tasks. Many tasks are made of few classes or shares:
there it is an interval over tasks of these classes or shares, and too narrow for new ones. A patient and a sinusoid are
one task each. In italics: the learner before adaptation, and baselines without meta-learning on the same tasks, with
penalties chosen on validation tasks. Hyper-parameters were chosen on validation tasks; [studies](studies.md) tell how.

Uncertainty: for classes, the calibration error in 15 bins, which the few queries of a task overstate, and the area
under the ROC curve (AUROC) of epistemic uncertainty for separating examples of other classes from a task's queries; for
regressions, the coverage of 90 % intervals.

`make results BUDGET=paper`, for a GPU, trains some configurations for as long as their papers did. An interrupted run
goes on at its last checkpoint; minutes include what was lost, and depend on what else the machine did.
`DATA=FOLDER` names the folder of the data sets.

```{toctree}
:hidden:

studies
benchmarks
```
"""
_HEAD = ["learner", "result", "uncertainty", "published", "training", "configuration, seed, commit"]


def write_page(results: Path, page: Path) -> None:
    """Write the page from the records of a folder."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_INTRODUCTION + "".join(_sections(results)))


def rows(results: Path, algorithm: str) -> str:
    """Return a Markdown table of one algorithm's results; an empty text if there is none."""
    found = [
        [table["title"], *_row(record, table, entry)[1:]]
        for table in tables()
        for record, entry in _records(results, table)
        if record.algorithm == algorithm
    ]
    return _markdown(["tasks", *_HEAD[1:]], found) if found else ""


def _sections(results: Path) -> Iterable[str]:
    for table in tables():
        found = list(_records(results, table))
        body = [_row(record, table, entry) for record, entry in found]
        body += _baselines([record for record, _ in found], table["metric"])
        names = {record.configuration for record, _ in found}
        absent = [f"`{name}`" for name in table["configurations"] if name not in names]
        yield f"\n## {table['title']}\n\n{table['text']}\n\n"
        if body:
            yield _markdown(_HEAD, body)
        if absent:
            yield "\n" if body else ""
            yield f"Not run yet: {', '.join(absent)}.\n"


def _records(results: Path, table: dict[str, Any]) -> Iterable[tuple[Record, dict[str, Any]]]:
    for name, entry in table["configurations"].items():
        for budget, tag in (("shipped", name), ("paper", f"{name}_paper")):
            record = Record.read(results / f"{tag}.json")
            # What an earlier configuration reached is no result of this one.
            if record and record.digest == digest_of(configuration_bytes(name, budgets(budget).get(name, []))):
                yield record, entry


def _row(record: Record, table: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    metric = table["metric"]
    compared = record.comparison[0]
    value = (compared["mean"], compared["ci95"]) if metric == "rmse" else record.metrics[metric]
    label = f"`{record.algorithm}`" + (f", {entry['label']}" if "label" in entry else "")
    time = f"{record.minutes:.0f} min" if record.minutes >= 1 else f"{60 * record.minutes:.0f} s"
    budget = "" if record.budget == "shipped" else ", the paper's budget"
    root = f"; root {_figure(compared['mean'], compared['ci95'], metric)}" if metric == "mse" else ""
    return [
        label,
        _figure(*value, metric) + root,
        _uncertainty(record.metrics),
        entry.get("published", ""),
        f"{time} on {record.device}{budget}",
        f"`{record.configuration}`, {record.seed}, {record.commit}",
    ]


def _uncertainty(metrics: dict[str, Any]) -> str:
    """What the test measured of the predictions' uncertainty."""
    parts = []
    if "ece" in metrics:
        parts.append(f"calibration error {100 * metrics['ece'][0]:.1f} %")
    if "ood_auroc_epistemic" in metrics:
        parts.append(f"AUROC {_figure(*metrics['ood_auroc_epistemic'], 'auroc')}")
    if "coverage_90" in metrics:
        parts.append(f"coverage {_figure(*metrics['coverage_90'], 'acc')}")
    return "; ".join(parts)


def _baselines(records: list[Record], metric: str) -> Iterable[list[str]]:
    """The learner of the first record before adaptation, and the baselines, which are the same for all records."""
    if not records:
        return
    first = records[0]
    if f"{metric}_pre" in first.metrics:
        value = _figure(*first.metrics[f"{metric}_pre"], metric)
        yield _baseline(f"{first.algorithm} before adaptation", value)
    for row in first.comparison:
        if row["learner"].startswith(first.algorithm):
            if row["learner"] != first.algorithm and metric == "rmse":
                yield [
                    f"*{first.algorithm} before adaptation*",
                    _figure(row["mean"], row["ci95"], metric),
                    "",
                    "",
                    "",
                    "",
                ]
        else:
            root = "root " if metric == "mse" else ""
            yield _baseline(row["learner"], root + _figure(row["mean"], row["ci95"], metric))


def _baseline(name: str, figure: str) -> list[str]:
    return [f"*{name}*", figure, *[""] * (len(_HEAD) - 2)]


def _figure(mean: float, half_width: float, metric: str) -> str:
    if metric == "acc":
        return f"{100 * mean:.2f} ± {100 * half_width:.2f} %"
    return f"{mean:.3f} ± {half_width:.3f}"


def _markdown(head: list[str], body: list[list[str]]) -> str:
    rule = "|" + "---|" * len(head)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *body)]
    return "\n".join([lines[0], rule, *lines[1:], ""])
