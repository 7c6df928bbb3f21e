"""Workspaces and reports that are built without a connection."""

from __future__ import annotations

import json
import sys

import pytest
from torch import nn

from lightning_meta import MAML
from lightning_meta.dashboard import ANY_LEARNER, build_report, build_workspace, kind_of, sections_of

pytest.importorskip("wandb_workspaces")


@pytest.fixture(autouse=True)
def _no_connection(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.getaddrinfo", refuse)


def test_a_workspace_has_every_panel():
    sections = sections_of(ANY_LEARNER)
    model = build_workspace("me", "mine", sections)._to_model().model_dump(mode="json", by_alias=True)
    assert (model["entity"], model["project"]) == ("me", "mine")
    bank = model["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in bank] == [section.name for section in sections]
    for built, section in zip(bank, sections, strict=True):
        for panel, own in zip(built["panels"], section.panels, strict=True):
            config = panel["config"]
            if own.kind == "lines":
                assert config["xAxis"] == "trainer/global_step"
                assert (config["metricRegex"] if own.pattern else tuple(config["metrics"])) == (
                    own.keys[0] if own.pattern else own.keys
                )
            elif own.kind == "pictures":
                assert tuple(config["mediaKeys"]) == own.keys
            else:
                assert own.keys[0] in json.dumps(config)


def test_a_report_has_every_panel_in_a_grid_without_overlaps():
    sections = sections_of([kind_of(MAML(nn.Linear(2, 2)), pictures=True)])
    report = build_report("me", "mine", sections)
    grids = [block for block in report.blocks if type(block).__name__ == "PanelGrid"]
    assert [len(grid.panels) for grid in grids] == [len(section.panels) for section in sections]
    for grid in grids:
        places = [(panel.layout.x, panel.layout.y) for panel in grid.panels]
        assert len(set(places)) == len(places)
        assert all(panel.layout.x + panel.layout.w <= 24 for panel in grid.panels)
    headings = [block.text for block in report.blocks if type(block).__name__ == "H2"]
    assert headings == [section.name for section in sections]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-meta\[dashboard\]'"):
        build_workspace("me", "mine", [])


def test_panels_that_two_kinds_share_are_there_once():
    sections = sections_of([*ANY_LEARNER, *ANY_LEARNER])
    assert sections == sections_of(ANY_LEARNER)
    panels = [panel for section in sections for panel in section.panels]
    assert len(set(panels)) == len(panels)
    assert sum(panel.keys == ("val/nll",) for panel in panels) == 1


@pytest.mark.parametrize(("outputs", "drawn"), [(1, True), (2, False)])
def test_calibration_of_several_labels_has_no_panel(outputs, drawn):
    sections = sections_of([kind_of(MAML(nn.Linear(3, outputs), nn.BCEWithLogitsLoss()), pictures=False)])
    keys = {key for section in sections for panel in section.panels for key in panel.keys}
    assert "val/ece" in keys
    assert ("val_episodes/calibration" in keys) == drawn
