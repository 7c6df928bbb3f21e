"""The documentation's directives: what they make of configurations, results and commands."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def from_code():
    sys.path.insert(0, str(DOCS / "_extensions"))
    import from_code

    yield from_code
    sys.path.remove(str(DOCS / "_extensions"))


def markdown(directive, *arguments):
    return directive.markdown(SimpleNamespace(arguments=arguments))


def test_a_learner_without_configuration_says_so(from_code):
    assert markdown(from_code.Measured, "BOIL") == "No configuration of `BOIL` is shipped."


def test_a_configuration_without_result_says_so(from_code, monkeypatch):
    monkeypatch.setattr("tools.results.page.rows", lambda results, learner: "| `omniglot_abml`, 0, 1234567 |")
    text = markdown(from_code.Measured, "ABML")
    assert "| `omniglot_abml`, 0, 1234567 |" in text
    _, _, not_run = text.partition("Not run yet: ")
    assert not_run == "`physionet_abml`, `sinusoid_abml`.\n"


def test_help_of_a_command(from_code):
    assert "--support" in markdown(from_code.CommandHelp, "adapt")


@pytest.mark.parametrize("status", [2, "no such command"])
def test_a_failed_command_has_no_help(from_code, monkeypatch, status):
    def fail():
        print("usage")
        raise SystemExit(status)

    monkeypatch.setattr("lightning_meta.cli.main", fail)
    with pytest.raises(AssertionError, match=f"adapt --help ended with status {status}"):
        markdown(from_code.CommandHelp, "adapt")


def test_a_silent_command_has_no_help(from_code, monkeypatch):
    monkeypatch.setattr("lightning_meta.cli.main", lambda: None)
    with pytest.raises(AssertionError, match="adapt --help printed nothing"):
        markdown(from_code.CommandHelp, "adapt")
