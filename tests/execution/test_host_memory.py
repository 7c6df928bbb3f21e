from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
from lightning_meta.execution.host_memory import keep_freed_memory

def step():
    blocks = [torch.empty(8 << 20, dtype=torch.uint8).fill_(1) for _ in range(6)]

def faults():
    step()
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="nothing is done with other C libraries")
def test_a_steps_memory_is_fetched_once_rather_than_in_every_step():
    returned, kept = map(int, subprocess.check_output([sys.executable, "-c", FAULTS], text=True).split())
    assert kept < 0.1 * returned
