"""Tasks of which it is known whether meta-learning pays, and learners that were trained on them for seconds."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import MAML, MLP, EpisodicDataModule, ProtoNet, SinusoidDataModule
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
    queries: int
    seed: int

    def make(self, indices):
        return self.redrawn(indices, np.zeros_like(indices))

    def redrawn(self, indices, draws):
        each = [self._task(int(index), int(draw)) for index, draw in zip(indices, draws, strict=True)]
        x, y = (torch.from_numpy(np.stack(part)) for part in zip(*each, strict=True))
        x, y = x.float(), y if y.dtype == torch.int64 else y.float()
        support, query = slice(self.shots), slice(self.shots, None)
        return Episode(x[:, support], y[:, support], x[:, query], y[:, query])

    def _task(self, index, draw):
        key = self.seed, len(self.split), index
        task, examples = np.random.default_rng(key), np.random.default_rng((*key, draw, 1))
        points = self.shots + self.queries
        x = examples.normal(size=(points, FEATURES))
        labels = np.concatenate([examples.permutation(size) % WAYS for size in (self.shots, self.queries)])
        if self.kind == "random labels":
            return x, labels
        if self.kind == "random functions":  # of so high a frequency that neighbors tell nothing
            direction, phase = 50 * task.normal(size=FEATURES), task.uniform(0, 2 * np.pi)
            return x, np.sin(x @ direction + phase)[:, None]
        code = np.tile(task.normal(size=FEATURES), (points, 1))
        if self.kind == "slopes":  # the inputs tell the task, and so does the support set
            return np.concatenate([code, x], 1), x[:, :1] * task.choice([-1.0, 1.0])
        x[:, 0] += 4 * labels
        order = task.permutation(WAYS) if self.kind == "codes" else np.arange(WAYS)
        return np.concatenate([code, x], 1), order[labels]


class MadeDataModule(TaskDataModule):
    """Serves `MadeTasks`."""

    def __init__(self, kind, shots=6, **options):
        super().__init__(**options)
        self.kind, self.shots = kind, shots

    def episodes(self, split):
        queries = self.shots if split == "train" else 30
        return MadeTasks(self.kind, split, self.num_tasks[split], self.shots, queries, self.seed)


def related(seed):
    """Sinusoids."""
    data = SinusoidDataModule(shots=10, tasks_per_batch=25, train_tasks=12500, eval_query_shots=30, seed=seed)
    return trained(data, MLP(1, 1), nn.MSELoss(), 1000, seed, inner_lr=0.01, inner_steps=1, eval_inner_steps=5)


def unrelated_classes(seed):
    """Labels that nothing predicts."""
    data = MadeDataModule("random labels", tasks_per_batch=8, train_tasks=800, seed=seed)
    return trained(data, MLP(FEATURES, WAYS, hidden=[20]), None, 100, seed, inner_lr=0.1, inner_steps=2)


def unrelated_functions(seed):
    """Functions that no example of the task predicts."""
    data = MadeDataModule("random functions", tasks_per_batch=8, train_tasks=800, seed=seed)
    return trained(data, MLP(FEATURES, 1, hidden=[20]), nn.MSELoss(), 300, seed, inner_lr=0.01, inner_steps=2)


def memorizable(seed):
    """Inputs that tell the task, and few training tasks."""
    options = {"tasks_per_batch": 10, "train_tasks": 200, "distinct_train_tasks": 10}
    data = MadeDataModule("slopes", seed=seed, **options)
    return trained(data, MLP(2 * FEATURES, 1, hidden=[40]), nn.MSELoss(), 400, seed, inner_lr=0.001)


def memorizable_classes(seed):
    """Inputs that tell how a task numbers its classes, and few training tasks."""
    options = {"tasks_per_batch": 10, "train_tasks": 200, "distinct_train_tasks": 10}
    data = MadeDataModule("codes", seed=seed, **options)
    return trained(data, MLP(2 * FEATURES, WAYS, hidden=[40]), None, 400, seed, inner_lr=0.001)


def same_classes(seed):
    """Classes that keep their label in all tasks."""
    data = MadeDataModule("same classes", tasks_per_batch=10, train_tasks=800, seed=seed)
    return trained(data, MLP(2 * FEATURES, WAYS, hidden=[40]), None, 100, seed, inner_lr=0.01)


def related_classes(seed):
    """Classes that differ in two of many features."""
    generator = torch.Generator().manual_seed(seed)
    sets = []
    for classes in (60, 40):
        means = 3 * torch.randn(classes, 1, 2, generator=generator)
        x = torch.cat([means.expand(-1, 30, -1), torch.zeros(classes, 30, 18)], 2)
        x = x + torch.cat([torch.full((2,), 0.5), torch.full((18,), 3.0)]) * torch.randn(x.shape, generator=generator)
        sets.append(TensorDataset(x.flatten(0, 1), torch.arange(classes).repeat_interleave(30)))
    data = EpisodicDataModule(*sets, ways=5, shots=2, query_shots=5, train_tasks=800, tasks_per_batch=8, seed=seed)
    return trained(data, nn.Linear(20, 8), None, 200, seed, algorithm=ProtoNet)


def trained(data, model, loss_fn, steps, seed, algorithm=MAML, **options):
    """Return a learner after so many outer steps from values of this seed, and the data."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    learner = algorithm(model, loss_fn, optimizer=lambda p: torch.optim.Adam(p, lr=0.003), **options)
    train_for(learner, data.training_tasks(), steps, data.tasks_per_batch)
    return learner, data
