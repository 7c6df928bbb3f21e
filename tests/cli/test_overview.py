"""`lightning-meta --help`, `--version` and mistyped commands."""

from __future__ import annotations

import pytest

from lightning_meta import cli
from lightning_meta.cli import main
from lightning_meta.version import __version__


def printed_by(arguments, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code, *capsys.readouterr()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_the_help_fits_one_screen_and_names_all_commands(arguments, capsys):
    status, out, _ = printed_by(arguments, capsys)
    assert status == 0
    lines = out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    first_words = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    for command in ("fit", "validate", "test", "predict", *cli._COMMANDS):
        assert first_words.count(command) == 1


def test_the_version(capsys):
    assert printed_by(["--version"], capsys) == (0, f"lightning-meta {__version__}\n", "")


def test_a_mistyped_command_names_the_nearest(capsys):
    status, out, error = printed_by(["baseline", "--config", "c.yaml"], capsys)
    assert (status, out) == (2, "")
    assert error == "lightning-meta: error: there is no command 'baseline': did you mean 'baselines'?\n"


def test_an_unknown_command_lists_all(capsys):
    status, _, error = printed_by(["xyz"], capsys)
    assert status == 2
    assert "choose one of fit, validate, test, predict, adapt, analyze, baselines" in error


def test_the_help_of_fit_begins_with_its_flags(capsys):
    status, out, _ = printed_by(["fit", "--help"], capsys)
    assert status == 0
    assert out.startswith("usage: lightning-meta fit --config FILE.yaml [--KEY VALUE ...]\n")
    assert "lightning-meta fit --model.help MAML" in " ".join(out.split())
