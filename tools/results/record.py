"""`Record`: the result of one configuration."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """What one configuration reached, with all that is needed to repeat it.

    Attributes:
        configuration: Its name, such as "sinusoid_maml".
        algorithm: The name of the learner's class.
        budget: "shipped": as the configuration says; "paper": the paper's.
        commands: The commands that were run, from the root of a copy of the project.
        seed: The seed of the training.
        digest: The SHA-256 of the configuration file and of the further arguments.
        commit: The commit of the project; several if the training was resumed with others.
        minutes: Minutes of training, the time before an interruption included.
        device: Where it ran, with the number of threads.
        versions: Versions of Python, torch and lightning.
        tasks: The number of test tasks.
        metrics: For each test metric its mean over tasks and the half-width of its 95 % interval.
        comparison: The learner and the baselines in the targets' units, as `compare_with_baselines` returns them.
    """

    configuration: str
    algorithm: str
    budget: str
    commands: list[str]
    seed: int
    digest: str
    commit: str
    minutes: float
    device: str
    versions: dict[str, str]
    tasks: int
    metrics: dict[str, tuple[float, float]]
    comparison: list[dict[str, Any]]

    def summary(self) -> str:
        """One line: the result and the minutes."""
        row = self.comparison[0]
        figures = f"{row['metric']} {row['mean']:.4f} ± {row['ci95']:.4f}"
        return f"{figures} over {self.tasks} tasks, {self.minutes:.1f} minutes of training"

    def write(self, path: Path) -> None:
        """Write to a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Read from a JSON file; None if there is none."""
        return cls(**json.loads(path.read_text())) if path.exists() else None


def digest_of(configuration: bytes) -> str:
    """Return the SHA-256 of a configuration."""
    return hashlib.sha256(configuration).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that an interruption leaves the old one or the new one."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
