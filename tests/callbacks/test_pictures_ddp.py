"""Pictures of a test on two processes: the first one draws, and the messages of both still match."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("pictures_on_two_processes.py")


def test_both_processes_go_on_after_the_first_has_drawn(tmp_path):
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(SCRIPT.parents[2])]))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "bands/posterior_bands.png").is_file()
    assert (tmp_path / "classes/reliability_diagram.png").is_file()
    received = [torch.load(tmp_path / f"{name}_{rank}.pt") for name in ("bands", "classes") for rank in (0, 1)]
    assert received == [1, 1, 1, 1]
