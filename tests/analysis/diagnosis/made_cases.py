"""Tasks of which it is known whether meta-learning pays, and learners that were trained on them for seconds."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lightning_meta import MAML, MLP, SinusoidDataModule
from lightning_meta.analysis.short_training import train_for
from lightning_meta.data import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.episodes import Episode

WAYS, FEATURES = 3, 6


@dataclass(eq=False)
class MadeTasks(EpisodeDataset):
    """Tasks whose examples come from two streams of random numbers: one of the task, one of the draw."""

    kind: str
    split: str
    num_tasks: int
    shots: int
    seed: int

    def make(self, indices):
        return self.redrawn(indices, np.zeros_like(indices))

    def redrawn(self, indices, draws):
        each = [self._task(int(index), int(draw)) for index, draw in zip(indices, draws, strict=True)]
        x, y = (torch.from_numpy(np.stack(part)) for part in zip(*each, strict=True))
        x, y = x.float(), y if y.dtype == torch.int64 else y.float()
        half = self.shots
        return Episode(x[:, :half], y[:, :half], x[:, half:], y[:, half:])

    def _task(self, index, draw):
        key = self.seed, len(self.split), index
        task, examples = np.random.default_rng(key), np.random.default_rng((*key, draw, 1))
        points = 2 * self.shots
        x = examples.normal(size=(points, FEATURES))
        if self.kind == "random labels":
            return x, np.concatenate([examples.permutation(self.shots) % WAYS for _ in range(2)])
        if self.kind == "random functions":  # of so high a frequency that neighbours tell nothing
            direction, phase = 50 * task.normal(size=FEATURES), task.uniform(0, 2 * np.pi)
            return x, np.sin(x @ direction + phase)[:, None]
        code, answer = task.normal(size=FEATURES), task.normal()  # the inputs tell the task
        return np.concatenate([np.tile(code, (points, 1)), x[:, :1]], 1), answer + 0.3 * examples.normal(
            size=(points, 1)
        )


class MadeDataModule(TaskDataModule):
    """Serves `MadeTasks`."""

    def __init__(self, kind, shots=6, **options):
        super().__init__(**options)
        self.kind, self.shots = kind, shots

    def episodes(self, split):
        return MadeTasks(self.kind, split, self.num_tasks[split], self.shots, self.seed)


def related(seed):
    """Sinusoids."""
    data = SinusoidDataModule(shots=10, tasks_per_batch=25, train_tasks=5000, eval_query_shots=30, seed=seed)
    return trained(data, MLP(1, 1), nn.MSELoss(), 400, seed, inner_lr=0.01, inner_steps=1, eval_inner_steps=5)


def unrelated_classes(seed):
    """Labels that nothing predicts."""
    data = MadeDataModule("random labels", tasks_per_batch=8, train_tasks=800, seed=seed)
    return trained(data, MLP(FEATURES, WAYS, hidden=[20]), None, 100, seed, inner_lr=0.1, inner_steps=2)


def unrelated_functions(seed):
    """Functions that no example of the task predicts."""
    data = MadeDataModule("random functions", tasks_per_batch=8, train_tasks=800, seed=seed)
    return trained(data, MLP(FEATURES, 1, hidden=[20]), nn.MSELoss(), 300, seed, inner_lr=0.01, inner_steps=2)


def memorizable(seed):
    """Inputs that tell the task, and few training tasks, with one answer each."""
    data = MadeDataModule("answers", tasks_per_batch=10, train_tasks=500, distinct_train_tasks=10, seed=seed)
    return trained(data, MLP(FEATURES + 1, 1, hidden=[40, 40]), nn.MSELoss(), 1000, seed, inner_lr=0.01)


def trained(data, model, loss_fn, steps, seed, **options):
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    learner = MAML(model, loss_fn, optimizer=lambda p: torch.optim.Adam(p, lr=0.003), **options)
    train_for(learner, data.training_tasks(), steps, data.tasks_per_batch)
    return learner, data
