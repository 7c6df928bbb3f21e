"""Sections as a workspace and as a report of Weights & Biases, built without a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_meta.callbacks.episodes.wandb_metrics import AXIS
from lightning_meta.dashboard.sections import Panel, Section

_NAME = "Meta-learning"
_INTRODUCTION = (
    "How learners adapt to tasks: results over training with intervals over tasks, the metric by inner step, "
    "calibration, single tasks with their predictions, and the gradients and rates behind them."
)
_WIDTH, _HEIGHT = 12, 8  # of a report's panel, in its grid of 24 columns


def build_workspace(entity: str, project: str, sections: Sequence[Section]) -> Any:
    """Return a `wandb_workspaces.workspaces.Workspace`, whose ``save()`` needs a key and a connection.

    Args:
        entity: The user or team.
        project: The project.
        sections: What to show.

    Raises:
        ImportError: If the package ``wandb-workspaces`` is not installed.
    """
    workspaces, _ = _packages()
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=_NAME,
        settings=workspaces.WorkspaceSettings(x_axis=AXIS),
        sections=[
            workspaces.Section(name=section.name, panels=[_panel(panel) for panel in section.panels], is_open=True)
            for section in sections
        ],
    )


def build_report(entity: str, project: str, sections: Sequence[Section]) -> Any:
    """Return a `wandb_workspaces.reports.v2.Report`; arguments and errors as in `build_workspace`."""
    _, reports = _packages()
    blocks = [reports.P(_INTRODUCTION), reports.TableOfContents()]
    for section in sections:
        panels = [_panel(panel) for panel in section.panels]
        for position, panel in enumerate(panels):
            row, column = divmod(position, 24 // _WIDTH)
            panel.layout = reports.Layout(x=column * _WIDTH, y=row * _HEIGHT, w=_WIDTH, h=_HEIGHT)
        runs = reports.Runset(entity=entity, project=project, name="runs")
        blocks += [reports.H2(section.name), reports.PanelGrid(runsets=[runs], panels=panels)]
    return reports.Report(entity=entity, project=project, title=_NAME, description=_INTRODUCTION, blocks=blocks)


def _panel(panel: Panel) -> Any:
    _, reports = _packages()
    if panel.kind == "table":
        return reports.WeavePanelSummaryTable(table_name=panel.keys[0])
    if panel.kind == "pictures":
        return reports.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    if panel.pattern:
        return reports.LinePlot(title=panel.title, x=AXIS, title_x="training steps", metric_regex=panel.keys[0])
    return reports.LinePlot(title=panel.title, x=AXIS, title_x="training steps", y=list(panel.keys))


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ImportError("dashboards need: pip install 'lightning-meta[dashboard]'") from error
    return workspaces, reports
