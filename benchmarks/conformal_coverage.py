"""The coverage of `ConformalPredictor` around a trained learner, beside its guarantee.

Run as ``python benchmarks/conformal_coverage.py --config configs/NAME.yaml [--coverage 0.9] [--KEY VALUE ...]``, with
the flags of ``lightning-meta fit``; it trains first, or with ``--weights CHECKPOINT`` takes what was trained.

Test tasks are split again and again into n calibration tasks and new ones. With one query of each calibration task the
mean coverage must lie in [c, c + 1 / (n + 1)], with all their queries it must be c or more. Splits are independent, so
that the error of the mean is that of the splits. For classes, the same follows for tasks of disjoint classes, which
are shared out anew in each repetition; there each task is once the new one.
"""

from __future__ import annotations

import argparse
import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_meta.analysis import ConformalPredictor
from lightning_meta.analysis.conformal import threshold_of
from lightning_meta.checkpoints.checked_io import read_checkpoint
from lightning_meta.cli.lightning_cli import run
from lightning_meta.data.episodic import NWayDataModule

QUIET = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def coverages(scores: list[Tensor], chosen: np.ndarray, new: np.ndarray, level: float, one: Tensor) -> list[float]:
    """The coverage of new tasks' queries, with one query of each calibration task, and with all.

    Args:
        scores: Those of all tasks, ``[queries]`` each.
        chosen: The calibration tasks, ``[n]``.
        new: The new tasks.
        level: The coverage asked for.
        one: A random number in [0, 1) for each calibration task, ``[n]``, which chooses its query.
    """
    every = [scores[task] for task in chosen]
    single = [own[int(u * len(own))][None] for own, u in zip(every, one, strict=True)]
    thresholds = threshold_of(single, level), threshold_of(every, level)
    return [float(np.mean([float((scores[t] <= s).double().mean()) for t in new])) for s in thresholds]


def said(what: str, calibrated: int, level: float, found: list[list[float]]) -> str:
    """A line with mean coverages, their 95 % errors and what is guaranteed."""
    values = np.array(found)
    means, errors = values.mean(0), 1.96 * values.std(0, ddof=1) / math.sqrt(len(values))
    one, every = (f"{mean:.4f} ± {error:.4f}" for mean, error in zip(means, errors, strict=True))
    guarantee = f"one query each {one} in [{level:g}, {level + 1 / (calibrated + 1):.4f}], all queries {every}"
    return f"{what}, n = {calibrated}: {guarantee}, {len(values)} repetitions"


def main() -> None:
    """Train, and print a line for each number of calibration tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--calibration", type=int, nargs="+", default=[19, 99])
    parser.add_argument("--repetitions", type=int, default=2_000)
    parser.add_argument("--sharings", type=int, default=200, help="Repetitions with tasks of disjoint classes.")
    parser.add_argument("--weights")
    args, flags = parser.parse_known_args()
    torch.set_num_threads(1)
    cli = run([*flags, *QUIET], run=False)
    learner, data = cli.model, cli.datamodule
    if args.weights is None:
        cli.trainer.fit(learner, data)
    else:
        data.prepare_data()
        data.setup("fit")
        learner.load_state_dict(read_checkpoint(args.weights, "cpu")["state_dict"])
    data.setup("test")
    conformal, level = ConformalPredictor(learner.eval()), args.coverage
    random = torch.Generator().manual_seed(0)
    scores = conformal.scores(data.episodes("test"))
    for calibrated in args.calibration:
        found = []
        for _ in range(args.repetitions):
            order = torch.randperm(len(scores), generator=random).numpy()
            one = torch.rand(calibrated, generator=random)
            found.append(coverages(scores, order[:calibrated], order[calibrated : calibrated + 50], level, one))
        print(said("drawn tasks", calibrated, level, found), flush=True)
    shares = conformal.calibrate(data.episodes("val"), level).coverage_of(data.episodes("test"))
    half = 1.96 * float(shares.std()) / math.sqrt(len(shares))
    low, high = shares.quantile(torch.tensor([0.05, 0.95]).double()).tolist()
    spread = f"5 and 95 % quantiles over tasks {low:.3f} and {high:.3f}"
    print(
        f"calibrated on {len(data.episodes('val'))} validation tasks: {float(shares.mean()):.4f} ± {half:.4f}, {spread}"
    )
    if not isinstance(data, NWayDataModule):
        return
    found = []
    for seed in range(args.sharings):
        drawn: Any = copy.copy(data.episodes("test"))
        drawn.seed = seed
        scores = conformal.scores(drawn.disjoint())
        count = len(scores)
        for new in range(count):
            rest = np.delete(np.arange(count), new)
            one = torch.rand(count - 1, generator=random)
            found.append(coverages(scores, rest, np.array([new]), level, one))
    by_sharing = np.array(found).reshape(args.sharings, count, 2).mean(1).tolist()
    print(said("tasks of disjoint classes", count - 1, level, by_sharing))


if __name__ == "__main__":
    main()
