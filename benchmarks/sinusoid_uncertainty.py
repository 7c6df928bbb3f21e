"""Calibration of each learner on noisy sinusoids, with 5 and 10 shots and one training budget for all.

Run as ``python benchmarks/sinusoid_uncertainty.py [learner ...] [--seeds N]``. Bayesian learners train by
their configurations, neural processes too, on the same noisy tasks; MAML with five inner steps on these tasks, and the
constant noise that is best on test tasks.
"""

from __future__ import annotations

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch

from lightning_meta.cli import main as command_line
from lightning_meta.data import SinusoidDataModule
from lightning_meta.learners.task_learner import TaskLearner

CONFIGS = Path(__file__).parent.parent / "configs"
PROCESSES = ("cnp", "attentive_np", "tnp")
LEARNERS = ("maml", "bayesian_maml", "abml", "amortized_maml", "platipus", "dkt", "pacoh", *PROCESSES)
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def arguments(name: str, shots: int, seed: int) -> list[str]:
    """The command line that trains a learner."""
    shots_and_logs = [
        f"--seed_everything={seed}",
        f"--data.shots={shots}",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
    ]
    if name == "maml":
        same = ["--config", str(CONFIGS / "sinusoid_maml_5step.yaml"), "--data.noise_std=0.3", "--data.query_shots=10"]
        budget = ["--data.train_tasks=10000", "--trainer.max_epochs=5", "--model.lr_scheduler.init_args.T_max=2000"]
        rate = [
            "--model.optimizer.init_args.lr=0.002",
            "--model.eval_inner_steps=5",
            "--model.lr_scheduler_interval=step",
            "--model.log_step_metrics=false",
        ]
        return ["fit", *same, *budget, *rate, *shots_and_logs, *QUIET]
    own = ["--config", str(CONFIGS / f"sinusoid_{name}.yaml")]
    if name in PROCESSES:  # their configurations are without noise, and longer
        own += ["--data.noise_std=0.3", "--data.query_shots=10", "--data.train_tasks=10000", "--model.min_std=0.1"]
        own += ["--trainer.max_epochs=5", "--model.lr_scheduler.init_args.T_max=5"]
    return ["fit", *own, *shots_and_logs, *QUIET]


def epistemic_inside_and_outside(learner: TaskLearner, data: SinusoidDataModule) -> tuple[float, float]:
    """Mean epistemic variance between a task's outermost support points and beyond them, over 100 test tasks.

    Not a number for learners that do not tell it from the noise.
    """
    inside, outside = [], []
    grid = torch.linspace(-5, 5, 101)[:, None]
    tasks = data.episodes("test").make(np.arange(100))
    for i in range(100):
        task = tasks.select(i)
        variance = learner.adapt(task.support_x, task.support_y).predict(grid).epistemic
        if variance is None:
            return math.nan, math.nan
        within = (grid >= task.support_x.min()) & (grid <= task.support_x.max())
        inside.append(variance[within])
        outside.append(variance[~within])
    return float(torch.cat(inside).mean()), float(torch.cat(outside).mean())


def main(names: list[str], seeds: int) -> None:
    """Train, test, and print a line for each learner and number of shots."""
    print("seed shots learner            squared error     NLL               coverage of 90 %  width   ", end="")
    print("epistemic in / outside")
    for shots, name, seed in itertools.product((5, 10), names, range(seeds)):
        line = command_line(arguments(name, shots, seed))
        (test,) = line.trainer.test(line.model, line.datamodule, verbose=False)
        start = f"{seed:4d} {shots:5d} {name:18s} {test['test/mse']:.3f} ± {test['test/mse_ci95']:.3f}"
        if name == "maml":
            best = 0.5 * math.log(2 * math.pi * math.e * test["test/mse"])
            print(f"{start}   {best:.3f} at best", flush=True)
            continue
        nll = f"{test['test/nll']:.3f} ± {test['test/nll_ci95']:.3f}"
        coverage = f"{100 * test['test/coverage_90']:.1f} ± {100 * test['test/coverage_90_ci95']:.1f} %"
        inside, outside = epistemic_inside_and_outside(line.model.eval(), line.datamodule)
        print(
            f"{start}   {nll}   {coverage:>13s}   {test['test/width_90']:7.3f}   {inside:.3f} / {outside:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("learners", nargs="*", default=LEARNERS, metavar="learner", help=", ".join(LEARNERS))
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    options = parser.parse_args()
    main(list(options.learners), options.seeds)
