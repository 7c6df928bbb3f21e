"""The table at the end of ``lightning-meta test`` and ``validate``: metrics with intervals."""

import re
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from torch import Tensor

_STEP = re.compile(r"(.+)_step_(\d+)")


def print_results(metrics: Mapping[str, Tensor], stage: str, tasks: int) -> None:
    """Print the means over tasks, before and after adaptation, and after each inner step where it was measured.

    Args:
        metrics: A trainer's metrics by name, such as ``test/acc``, ``test/acc_ci95``, ``test/acc_pre``.
        stage: "test" or "val", before the slash.
        tasks: The number of tasks.
    """
    values = {n.removeprefix(f"{stage}/"): float(v) for n, v in metrics.items() if n.startswith(f"{stage}/")}
    means = {name: value for name, value in values.items() if f"{name}_ci95" in values}
    shown = {name: f"{value:.4g} ± {values[f'{name}_ci95']:.2g}" for name, value in means.items()}
    # Lightning's metrics of a user's own subclass have no interval.
    shown |= {n: f"{v:.4g}" for n, v in values.items() if n not in means and not n.endswith("_ci95")}
    steps = {name: match for name in shown if (match := _STEP.fullmatch(name))}
    rows = [name for name in shown if name not in steps and not name.endswith("_pre")]
    has_before = any(f"{name}_pre" in shown for name in rows)
    table = Table("metric", *(["before adaptation"] if has_before else []), "after adaptation")
    for name in rows:
        table.add_row(name, *([shown.get(f"{name}_pre", "")] if has_before else []), shown[name])
    console = Console()
    if steps:
        by_step = Table("inner steps", *dict.fromkeys(match[1] for match in steps.values()))
        for step in sorted({int(match[2]) for match in steps.values()}):
            by_step.add_row(str(step), *(shown.get(f"{c.header}_step_{step}", "") for c in by_step.columns[1:]))
        console.print(by_step)
    console.print(table)
    console.print(f"Means over {tasks} {stage} tasks, ± 95 % interval over tasks.")
