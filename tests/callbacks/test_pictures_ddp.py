"""Pictures of a test on two processes: the first one draws, and the messages of both still match."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.scripts import run_script

SCRIPT = Path(__file__).with_name("pictures_on_two_processes.py")


def test_both_processes_go_on_after_the_first_has_drawn(tmp_path):
    run_script(SCRIPT, tmp_path)
    assert (tmp_path / "bands/posterior_bands.png").is_file()
    assert (tmp_path / "classes/reliability_diagram.png").is_file()
    received = [torch.load(tmp_path / f"{name}_{rank}.pt") for name in ("bands", "classes") for rank in (0, 1)]
    assert received == [1, 1, 1, 1]
