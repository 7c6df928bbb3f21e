"""The table at the end of ``lightning-meta test`` and ``validate``: metrics with intervals."""

import re
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

_STEP = re.compile(r"(.+)_step_(\d+)")


def print_results(metrics: Mapping[str, Tensor], stage: str, tasks: int, scope: str) -> None:
    """Print the means over tasks, before and after adaptation, and after each inner step where it was measured.

    Args:
        metrics: A trainer's metrics by name, such as ``test/acc``, ``test/acc_ci95``, ``test/acc_pre``.
        stage: "test" or "val", before the slash.
        tasks: The number of tasks.
        scope: What their intervals are about, such as "over tasks".
    """
    values = {n.removeprefix(f"{stage}/"): float(v) for n, v in metrics.items() if n.startswith(f"{stage}/")}
    intervals = {f"{name}_ci95" for name in values} & values.keys()
    # Lightning's metrics of a user's own subclass have no interval.
    shown = {
        name: f"{value:.4g}" + (f" ± {values[f'{name}_ci95']:.2g}" if f"{name}_ci95" in values else "")
        for name, value in values.items()
        if name not in intervals
    }
    # A user's own metric may end as if it were a part of another: it is one only if that is there.
    steps = {name: match for name in shown if (match := _STEP.fullmatch(name)) and match[1] in shown}
    before = {f"{name}_pre" for name in shown} & shown.keys()
    rows = [name for name in shown if name not in steps and name not in before]
    has_before = bool(before)
    table = Table("metric", *(["before adaptation"] if has_before else []), "after adaptation")
    for name in rows:
        table.add_row(escape(name), *([shown.get(f"{name}_pre", "")] if has_before else []), shown[name])
    console = Console()
    if steps:
        names = dict.fromkeys(match[1] for match in steps.values())
        by_step = Table("inner steps", *map(escape, names))
        for step in sorted({int(match[2]) for match in steps.values()}):
            by_step.add_row(str(step), *(shown.get(f"{name}_step_{step}", "") for name in names))
        console.print(by_step)
    console.print(table)
    console.print(f"Means over {tasks} {stage} tasks, ± 95 % interval {scope}.")
