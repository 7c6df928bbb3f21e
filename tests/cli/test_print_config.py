"""``--print_config``: what it prints for each shipped configuration gives the same run."""

from __future__ import annotations

import pytest
from jsonargparse import capture_parser

from lightning_meta.cli.lightning_cli import run
from tests.shipped import cases


@pytest.fixture(scope="module")
def parser():
    return capture_parser(run, ["fit"])  # the command line's own; making it takes longer than parsing


@pytest.mark.parametrize("config", cases())
def test_a_printed_configuration_gives_the_same_run(config, parser, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["fit", "--config", str(config), "--trainer.max_epochs=7", "--print_config"])
    assert stopped.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    parsed = parser.parse_args(["fit", "--config", str(config), "--trainer.max_epochs=7"]).fit
    again = parser.parse_args(["fit", "--config", str(printed)]).fit
    assert parsed.trainer.max_epochs == 7
    del parsed["config"], again["config"]
    assert parsed.as_dict() == again.as_dict()
