"""`Run`: the training and test of one configuration, which goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import polars as pl
import torch
import yaml

from tools.results.record import Record, digest_of
from tools.results.tables import tables

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "results"
_QUIET = ["--trainer.enable_progress_bar", "false"]
_SAVE_TIME_SECONDS = 10


def budgets(budget: str) -> dict[str, list[str]]:
    """Return the arguments beside the configuration by its name, in the order in which they are run."""
    entries = {name: entry for table in tables() for name, entry in table["configurations"].items()}
    if budget == "shipped":
        return {name: [] for name in entries}
    return {name: [str(a) for a in e["paper_budget"]] for name, e in entries.items() if "paper_budget" in e}


class Run:
    """The training and test of one configuration in a folder of its own, ``outputs/results/NAME``.

    The folder has links to ``configs`` and to the data, so that the commands are those that a user runs in a copy of
    the project.

    Args:
        name: The configuration.
        budget: "shipped" or "paper".
        arguments: Arguments beside the configuration.
        data: The folder of the data sets.
    """

    def __init__(self, name: str, budget: str, arguments: list[str], data: Path) -> None:
        self.name, self.budget, self.arguments, self.data = name, budget, arguments, data
        tag = name if budget == "shipped" else f"{name}_{budget}"
        self.result = FOLDER / f"{tag}.json"
        self.folder = ROOT / "outputs" / "results" / tag
        path = ROOT / "configs" / f"{name}.yaml"
        self.configuration = path.read_bytes() + " ".join(arguments).encode()
        self.content: dict[str, Any] = yaml.safe_load(path.read_text())

    def missing_data(self) -> Path | None:
        """Return the file or folder of the data that the configuration names, if it does not exist."""
        options = self.content["data"].get("init_args", {})
        named = options.get("root", options.get("file"))
        if named is None:
            return None
        path = self.data / Path(named).relative_to("data")
        return None if path.exists() else path

    def complete(self, again: bool = False) -> Record:
        """Train, or go on with an interrupted training, test, and return the result.

        Args:
            again: Whether to forget an earlier run.

        Raises:
            RuntimeError: If a command fails.
        """
        state = self.folder / "run.json"
        digest = digest_of(self.configuration)
        if again or not state.exists() or json.loads(state.read_text())["digest"] != digest:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (self.folder / "configs").symlink_to(ROOT / "configs")
            (self.folder / "data").symlink_to(self.data)
            state.write_text(json.dumps({"digest": digest, "commit": _commit(), "minutes": 0.0, "trained": False}))
        progress = json.loads(state.read_text())
        base = ["--config", f"configs/{self.name}.yaml", *self.arguments]
        if not progress["trained"]:
            newest = self._checkpoint()
            resumed = [] if newest is None else ["--ckpt_path", str(newest)]
            self._call(["fit", *base, *resumed, *_QUIET], state, progress)
            progress["trained"] = True
            state.write_text(json.dumps(progress))
        checkpoint = self._checkpoint()
        if checkpoint is None:
            raise RuntimeError(f"training left no checkpoint in {self.folder}")
        tested = [*base, "--ckpt_path", str(checkpoint)]
        self._call(["test", *tested, *_QUIET])
        compared = self.folder / "comparison.csv"
        self._call(["baselines", *tested, "--output", compared.name, "--overwrite"])
        metrics, tasks = self._metrics()
        fit = ["fit", *base]
        return Record(
            configuration=self.name,
            algorithm=self.content["model"]["class_path"].rpartition(".")[2],
            budget=self.budget,
            commands=[" ".join(["lightning-meta", *command]) for command in (fit, ["test", *tested])],
            seed=self.content["seed_everything"],
            digest=digest,
            commit=progress["commit"],
            minutes=round(progress["minutes"], 2),
            device=_device(),
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
            tasks=tasks,
            metrics=metrics,
            comparison=pl.read_csv(compared).to_dicts(),
        )

    def _checkpoint(self) -> Path | None:
        """The newest checkpoint, relative to the folder."""
        found = sorted(self.folder.glob("lightning_logs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
        return found[-1].relative_to(self.folder) if found else None

    def _metrics(self) -> tuple[dict[str, tuple[float, float]], int]:
        files = sorted(self.folder.glob("lightning_logs/*/per_task.csv"), key=lambda path: path.stat().st_mtime)
        table = pl.read_csv(files[-1]).drop("task")
        values = {name: table[name].to_numpy() for name in table.columns}
        means = {n: (float(v.mean()), float(1.96 * v.std(ddof=1) / np.sqrt(len(v)))) for n, v in values.items()}
        return means, len(table)

    def _call(self, arguments: list[str], state: Path | None = None, progress: dict[str, Any] | None = None) -> None:
        """Run a command of the package in the folder; count its minutes in ``progress`` and save them meanwhile."""
        with (self.folder / "output.txt").open("a") as output:
            print("$ lightning-meta", *arguments, file=output, flush=True)
            command = [sys.executable, "-m", "lightning_meta", *arguments]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            before = progress["minutes"] if progress is not None else 0.0
            start = time.monotonic()
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_SAVE_TIME_SECONDS)
                    if state is not None and progress is not None:
                        progress["minutes"] = before + (time.monotonic() - start) / 60
                        state.write_text(json.dumps(progress))
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        if process.returncode:
            raise RuntimeError(f"`lightning-meta {arguments[0]}` failed, see the end of {self.folder / 'output.txt'}")


def _commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return described.stdout.strip()


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "CPU, 1 thread"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "lightning": lightning.__version__}
