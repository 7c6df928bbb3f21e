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
import polars as pl
import torch
import yaml

from lightning_meta.metrics.task_metrics import TaskMetrics
from tools.results.record import Record, digest_of, write_whole
from tools.results.tables import ROOT, configuration_bytes

FOLDER = ROOT / "results"
_QUIET = ["--trainer.enable_progress_bar", "false"]
_SAVE_TIME_SECONDS = 10
_STOP_SECONDS = 30


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
        self.digest = digest_of(configuration_bytes(name, arguments))
        self.content: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())

    def missing_data(self) -> Path | None:
        """Return the file or folder of the data that the configuration names, if it does not exist."""
        options = self.content["data"].get("init_args", {})
        named = options.get("root", options.get("file"))
        if named is None:
            return None
        path = self.data / Path(named).relative_to("data")
        return None if path.exists() else path

    def forget(self) -> None:
        """Remove an earlier result, and what an interrupted run has left."""
        self.result.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def complete(self) -> Record:
        """Train, or go on with an interrupted training, test, and return the result.

        Raises:
            RuntimeError: If a command fails.
        """
        state = self.folder / "run.json"
        if not state.exists() or json.loads(state.read_text())["digest"] != self.digest:
            self.forget()
            self.folder.mkdir(parents=True)
            (self.folder / "configs").symlink_to(ROOT / "configs")
            write_whole(state, json.dumps({"digest": self.digest, "commits": [], "minutes": 0.0, "trained": False}))
        (self.folder / "data").unlink(missing_ok=True)
        (self.folder / "data").symlink_to(self.data)
        progress = json.loads(state.read_text())
        base = ["--config", f"configs/{self.name}.yaml", *self.arguments]
        if not progress["trained"]:
            progress["commits"] = list(dict.fromkeys([*progress["commits"], _commit()]))
            newest = self._checkpoint()
            resumed = [] if newest is None else ["--ckpt_path", str(newest)]
            self._call(["fit", *base, *resumed, *_QUIET], state, progress)
            progress["trained"] = True
            write_whole(state, json.dumps(progress))
        checkpoint = self._checkpoint()
        if checkpoint is None:
            raise RuntimeError(f"training left no checkpoint in {self.folder}")
        tested = [*base, "--ckpt_path", str(checkpoint)]
        self._call(["test", *tested, *_QUIET])
        compared = self.folder / "comparison.csv"
        self._call(["baselines", *tested, "--output", compared.name, "--overwrite"])
        metrics, tasks = self._metrics()
        return Record(
            configuration=self.name,
            algorithm=self.content["model"]["class_path"].rpartition(".")[2],
            budget=self.budget,
            commands=[" ".join(["lightning-meta", *command]) for command in (["fit", *base], ["test", *tested])],
            seed=self.content["seed_everything"],
            digest=self.digest,
            commit=", ".join(progress["commits"]),
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
        collected = TaskMetrics()
        collected.update({name: torch.tensor(table[name].to_list()) for name in table.columns})
        values = {name: float(value) for name, value in collected.compute().items()}
        return {name: (values[name], values[f"{name}_ci95"]) for name in table.columns}, len(table)

    def _call(self, arguments: list[str], state: Path | None = None, progress: dict[str, Any] | None = None) -> None:
        """Run a command of the package in the folder; count its minutes in ``progress`` and save them meanwhile."""
        before = progress["minutes"] if progress is not None else 0.0
        start = time.monotonic()

        def save() -> None:
            if state is not None and progress is not None:
                progress["minutes"] = before + (time.monotonic() - start) / 60
                write_whole(state, json.dumps(progress))

        with (self.folder / "output.txt").open("a") as output:
            print("$ lightning-meta", *arguments, file=output, flush=True)
            places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
            process = subprocess.Popen(
                [sys.executable, "-m", "lightning_meta", *arguments],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": places},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_SAVE_TIME_SECONDS)
                    save()
            finally:
                save()
                _stop(process)
        if process.returncode:
            raise RuntimeError(f"`lightning-meta {arguments[0]}` failed, see the end of {self.folder / 'output.txt'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force if it takes too long or the wait is interrupted too."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _commit() -> str:
    """Return the commit of the code, with "-dirty" if the code or a configuration differs from it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    code = ["git", "diff", "--quiet", "HEAD", "--", "lightning_meta", "configs"]
    changed = subprocess.run(code, cwd=ROOT, check=False).returncode
    return commit.stdout.strip() + ("-dirty" if changed else "")


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "CPU, 1 thread"
