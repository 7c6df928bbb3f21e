"""Dashboards of Weights & Biases: which keys runs log, and the workspace and report that show them."""

from lightning_meta.dashboard.run_kind import ANY_LEARNER, RunKind, kind_of
from lightning_meta.dashboard.sections import Panel, Section, sections_of
from lightning_meta.dashboard.workspace import build_report, build_workspace

__all__ = [
    "ANY_LEARNER",
    "Panel",
    "RunKind",
    "Section",
    "build_report",
    "build_workspace",
    "kind_of",
    "sections_of",
]
