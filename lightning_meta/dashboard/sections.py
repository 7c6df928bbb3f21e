"""The sections of a dashboard and their panels, without the package that builds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from lightning_meta.dashboard.run_kind import RunKind

_NAMES = {"acc": "accuracy", "mse": "mean squared error"}
_UNCERTAINTY = {
    "classes": {"nll": "negative log-likelihood", "ece": "expected calibration error", "brier": "Brier score"},
    "real": {
        "nll": "negative log-likelihood",
        "coverage_90": "coverage of the 90 % interval",
        "width_90": "width of the 90 % interval",
        "quantile_ce": "calibration error of quantiles",
    },
}


class Panel(NamedTuple):
    """A panel.

    Attributes:
        title: Its title.
        kind: Lines over training steps, pictures, or a table.
        keys: The keys that it shows; for lines also regular expressions of keys, with ``pattern``.
        pattern: Whether the only key is a regular expression that whole keys match.
    """

    title: str
    kind: Literal["lines", "pictures", "table"]
    keys: tuple[str, ...]
    pattern: bool = False


class Section(NamedTuple):
    """Panels under a name."""

    name: str
    panels: tuple[Panel, ...]


def sections_of(kinds: Sequence[RunKind]) -> list[Section]:
    """Return the sections that show runs of these kinds; a panel that several kinds have is there once.

    Args:
        kinds: What the runs log.
    """
    sections: dict[str, dict[Panel, None]] = {}
    for kind in kinds:
        for section in _sections(kind):
            sections.setdefault(section.name, {}).update(dict.fromkeys(section.panels))
    return [Section(name, tuple(panels)) for name, panels in sections.items() if panels]


def _sections(kind: RunKind) -> list[Section]:
    return [
        Section("Results", tuple(_results(kind))),
        Section("Adaptation", tuple(_adaptation(kind))),
        Section("Uncertainty", tuple(_uncertainty(kind))),
        Section("Tasks", tuple(_tasks(kind))),
        Section("Training", tuple(_training(kind))),
    ]


def _results(kind: RunKind) -> list[Panel]:
    shown = {} if kind.metric is None else {kind.metric: _NAMES[kind.metric]}
    panels = [
        Panel(f"{name} of validation and training", "lines", (f"val/{key}", f"train/{key}"))
        for key, name in (shown | {"loss": "loss"}).items()
    ]
    return panels + [
        Panel(f"95 % interval of the {name} over tasks", "lines", (f"val/{key}_ci95",)) for key, name in shown.items()
    ]


def _adaptation(kind: RunKind) -> list[Panel]:
    panels = []
    if kind.adapts and kind.metric is not None:
        name = _NAMES[kind.metric]
        panels += [
            Panel(f"{name} before and after adaptation", "lines", (f"val/{kind.metric}_pre", f"val/{kind.metric}")),
            Panel(f"{name} by inner step", "lines", (rf"val_episodes/{kind.metric}_step_\d+",), pattern=True),
            Panel("Adaptation", "pictures", ("val_episodes/adaptation",)),
        ]
    if kind.inner_gradients:
        steps = r"val_episodes/inner_gradient_norm_step_\d+"
        panels.append(Panel("norm of the inner gradient by step", "lines", (steps,), pattern=True))
    return panels


def _uncertainty(kind: RunKind) -> list[Panel]:
    if kind.uncertainty is None:
        return []
    panels = [Panel(name, "lines", (f"val/{key}",)) for key, name in _UNCERTAINTY[kind.uncertainty].items()]
    return panels + [Panel("Calibration", "pictures", ("val_episodes/calibration",))] * kind.calibration


def _tasks(kind: RunKind) -> list[Panel]:
    panels = [Panel("Difficulty of tasks", "pictures", ("val_episodes/difficulty",))]
    panels += [Panel("Tasks with predictions", "pictures", ("val_episodes/tasks",))] if kind.pictures else []
    return [
        *panels,
        Panel("Examples with predictions", "table", ("val_episodes/examples",)),
        Panel("Metrics of each task", "table", ("val_episodes/per_task",)),
    ]


def _training(kind: RunKind) -> list[Panel]:
    panels = [Panel("norm of the meta-gradient", "lines", ("train/meta_gradient_norm",))]
    if kind.learned_rates:
        panels += [
            Panel("learned inner rates", "lines", (r"learned_rates/.+",), pattern=True),
            Panel("Learned rates", "pictures", ("val_episodes/learned_rates",)),
        ]
    return panels + [Panel(name.replace("_", " "), "lines", (f"train/{name}",)) for name in kind.diagnostics]
