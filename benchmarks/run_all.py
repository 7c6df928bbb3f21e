"""Run the benchmarks of speed and memory, and write what they print to RESULTS.md with the machine's description."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import timing

HERE = Path(__file__).parent
SCRIPTS = ("training_step", "evaluation", "episodes", "memory", "lightning_overhead", "scaling", "gpu")


def main() -> None:
    """Run each script as a process of its own; skip episode making where OMNIGLOT_ROOT names no data."""
    page = [f"# Benchmarks\n\nWritten by `make bench`, on {timing.machine()}.\n"]
    for name in SCRIPTS:
        title = (HERE / f"{name}.py").read_text().splitlines()[0].strip('"')
        if name == "episodes" and "OMNIGLOT_ROOT" not in os.environ:
            output = "OMNIGLOT_ROOT names no folder with Omniglot: not run\n"
        else:
            process = subprocess.run(
                [sys.executable, "-W", "ignore", str(HERE / f"{name}.py")],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            output = process.stdout
        print(output, flush=True)
        page.append(f"## {title}\n\n`benchmarks/{name}.py`\n\n```text\n{output.strip()}\n```\n")
    (HERE / "RESULTS.md").write_text("\n".join(page))


if __name__ == "__main__":
    main()
