"""The advice of `search_rate` beside a grid of 25 rates on many fresh tasks: sinusoids and Omniglot 5-way 1-shot.

Run as ``python benchmarks/inner_rates.py CASE [--repetitions N] [--ckpt_path CHECKPOINT]``, with ``OMNIGLOT_ROOT`` for
Omniglot. Each repetition searches on other validation tasks; without a checkpoint each has another initialization, too.
The grid spans a factor of 100 on both sides of the learner's rate. Its rates are evaluated on the same fresh tasks as
the advised one; those that are 30 % above the best on the first 50 are left out. Costs are evaluations of a task, all
with the same number of steps, as a share of a full grid's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from lightning_meta import MAML, MLP, Conv4
from lightning_meta.analysis import search_rate
from lightning_meta.analysis.task_losses import losses_by_step
from lightning_meta.analysis.tasks import take
from lightning_meta.checkpoints.checked_io import read_checkpoint
from lightning_meta.data import OmniglotDataModule, SinusoidDataModule, TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset

GRID, GRID_TASKS, SPAN = 25, 600, 100.0
FEW, AT_ONCE, CLEARLY_WORSE = 50, 50, 1.3
FRESH_SEED = 10_000

Make = tuple[Callable[[], MAML], Callable[[int], TaskDataModule]]


def sinusoids(steps: int) -> Make:
    """The configurations sinusoid_maml (1 step, 10 in evaluation) and sinusoid_maml_5step."""

    def learner() -> MAML:
        return MAML(MLP(), nn.MSELoss(), inner_lr=0.01, inner_steps=steps, eval_inner_steps=10)

    return learner, lambda seed: SinusoidDataModule(shots=10, eval_query_shots=100, seed=seed)


def omniglot() -> Make:
    """The configuration omniglot_maml with a rate of 0.4 that is not learned."""
    root, cache = os.environ.get("OMNIGLOT_ROOT", "data/omniglot"), os.environ.get("OMNIGLOT_CACHE")

    def data(seed: int) -> TaskDataModule:
        made = OmniglotDataModule(root, ways=5, shots=1, query_shots=5, seed=seed, cache_dir=cache)
        made.prepare_data()
        made.setup("fit")
        return made

    return lambda: MAML(Conv4(5), inner_lr=0.4), data


CASES: dict[str, Callable[[], Make]] = {
    "sinusoid": lambda: sinusoids(1),
    "sinusoid_5step": lambda: sinusoids(5),
    "omniglot": omniglot,
}


class Oracle:
    """Losses of one learner on fresh tasks."""

    def __init__(self, learner: MAML, tasks: EpisodeDataset, count: int) -> None:
        self.learner = learner
        firsts = range(0, count, AT_ONCE)
        self.batches = [take(tasks, min(AT_ONCE, count - first), first=first) for first in firsts]
        few = {rate: self.loss(rate, FEW // AT_ONCE) for rate in learner.inner_lr * np.geomspace(1 / SPAN, SPAN, GRID)}
        near = [rate for rate, loss in few.items() if loss <= CLEARLY_WORSE * min(few.values())]
        self.best = min(self.loss(rate) for rate in near)

    def loss(self, rate: float, batches: int | None = None) -> float:
        """Return the mean loss with a rate."""
        steps = (self.learner.eval_inner_steps,)
        losses = [losses_by_step(self.learner, batch, steps, rate)[:, 0] for batch in self.batches[:batches]]
        return float(torch.cat(losses).mean())


def main() -> None:
    """Print a line for each repetition, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=GRID_TASKS)
    parser.add_argument("--ckpt_path")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_learner, make_data = CASES[args.case]()
    fresh = make_data(FRESH_SEED).episodes("val")
    oracle, rows = None, []
    for seed in range(args.repetitions):
        if oracle is None or args.ckpt_path is None:
            torch.manual_seed(seed)
            learner = make_learner()
            if args.ckpt_path is not None:
                learner.load_state_dict(read_checkpoint(args.ckpt_path, "cpu")["state_dict"])
            oracle = Oracle(learner, fresh, args.tasks)
        found = search_rate(oracle.learner, make_data(seed).episodes("val"))
        excess = oracle.loss(found.advised) / oracle.best - 1
        rows.append((excess, found.evaluations / (GRID * GRID_TASKS), found.settled))
        print(f"{seed:3d} rate {found.advised:8.3g} excess {excess:+6.1%} cost {rows[-1][1]:5.1%}", flush=True)
    excesses, costs, settled = (np.array(column) for column in zip(*rows, strict=True))
    kind = "untrained" if args.ckpt_path is None else "trained"
    print(f"{args.case}, {kind}, {len(rows)} repetitions, {args.tasks} fresh tasks")
    print(f"  at most 10 % above the grid's best: {np.mean(excesses <= 0.1):.1%}")
    print(f"  excess: median {np.median(excesses):+.1%}, largest {excesses.max():+.1%}")
    print(f"  cost: mean {costs.mean():.1%}, largest {costs.max():.1%}; settled {settled.mean():.0%}")


if __name__ == "__main__":
    main()
