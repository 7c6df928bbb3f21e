"""The shipped configurations, and arguments with which tests run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.domains import WRITERS
from tests.registry import LEARNERS

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CHEAPEST_FIRST = ["sinusoid", "parkinsons", "physionet", "clinc150", "sp500", "omniglot", "cifarfs"]
TRAIN_CLASSES = {"clinc150": 18, "omniglot": 1100}  # of the files that tests write, and without turned drawings
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def cost(config: Path) -> tuple[int, int, str]:
    """What to sort configurations by, to have those first that run in the shortest time and are plainest."""
    return CHEAPEST_FIRST.index(config.stem.split("_")[0]), len(config.stem), config.stem


def classes_of(config: Path) -> list[str]:
    """The classes that a configuration names: its learner's, then those of model, optimizer, data and others."""
    return re.findall(r"class_path: ([\w.]+)", config.read_text())


def run_by_default() -> list[Path]:
    """Choose the configurations that name a class that no cheaper one names: models, data and learners.

    Learners whose costly tests are slow do not count.
    """
    chosen, named = [], slow_learners()
    for config in sorted(CONFIGS, key=cost):
        chosen += [] if named.issuperset(classes_of(config)) else [config]
        named.update(classes_of(config))
    return chosen


def slow_learners() -> set[str]:
    """The names of the classes all of whose costly tests are slow."""
    quick = {entry.cls.__name__ for entry in LEARNERS if not entry.costly_tests_are_slow}
    return {entry.cls.__name__ for entry in LEARNERS} - quick


def cases() -> list[Any]:
    """Make a test's parameters of all configurations, slow ones of those that are not run by default."""
    chosen = run_by_default()
    return [pytest.param(own, id=own.stem, marks=[] if own in chosen else [pytest.mark.slow]) for own in CONFIGS]


def small(config: Path) -> list[str]:
    """Arguments that make a configuration's run take seconds."""
    few = ["--data.tasks_per_batch=2", "--data.train_tasks=4", "--data.val_tasks=4", "--data.test_tasks=4"]
    domain = config.stem.split("_")[0]
    narrow = {"omniglot": "filters=4", "cifarfs": "widths=[4,4,4,4]"}
    lean = [f"--model.model.init_args.{narrow[domain]}"] if domain in narrow else []
    if "num_train_classes" in config.read_text():
        lean += ["--trainer.limit_train_batches=2", f"--model.num_train_classes={TRAIN_CLASSES[domain]}"]
        lean += ["--data.rotations=false"] if domain == "omniglot" else []
    if domain in WRITERS:
        root = Path(domain)
        if not root.exists():
            root.mkdir()
            WRITERS[domain](root)
        lean += [f"--data.file={root}/parkinsons_updrs.data"] if domain == "parkinsons" else [f"--data.root={root}"]
        counts = ["--data.train_patients=20", "--data.val_patients=4", "--data.test_patients=4"]
        lean += counts if domain == "physionet" else []
    lean += ["--model.eval_inner_steps=3"] if "omniglot_reptile" in config.name else []
    return [
        "--config",
        str(config),
        "--trainer.max_epochs=1",
        "--trainer.check_val_every_n_epoch=1",
        *QUIET,
        *few,
        *lean,
    ]
