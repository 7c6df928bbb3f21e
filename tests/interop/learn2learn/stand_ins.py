"""Stand-ins with the attributes of learn2learn's classes that we read, for environments without it."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn


class MAML(nn.Module):
    def __init__(self, module, lr, first_order=False):
        super().__init__()
        self.module, self.lr, self.first_order = module, lr, first_order


class MetaSGD(nn.Module):
    def __init__(self, module, lr=1.0, first_order=False, lrs=None):
        super().__init__()
        self.module, self.first_order = module, first_order
        self.lrs = nn.ParameterList(torch.full_like(p, lr) for p in module.parameters()) if lrs is None else lrs


class Scale(nn.Module):
    def __init__(self, shape, alpha):
        super().__init__()
        self.alpha = nn.Parameter(torch.full(shape, alpha))


class Update:
    """In the place of `ParameterUpdate`."""

    def __init__(self, transforms):
        self.transforms_modules = [t for t in transforms if t is not None]
        places = iter(range(len(transforms)))
        self.transforms_indices = [None if t is None else next(places) for t in transforms]


class GBML(nn.Module):
    def __init__(self, module, transform, lr=1.0, adapt_transform=False, first_order=False):
        super().__init__()
        self.module, self.lr, self.adapt_transform, self.first_order = module, lr, adapt_transform, first_order
        self.compute_update = Update([transform(p) for p in module.parameters()])


MODULES = (MAML, MetaSGD, Scale, GBML)


class MetaDataset:
    def __init__(self, data, labels):
        self.data = data
        self.indices_to_labels = dict(enumerate(labels))
        self.labels = list(dict.fromkeys(labels))

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index], self.indices_to_labels[index]


class Taskset:
    """Draws ways, examples and their order by `random`, noise by torch, and remembers a finite number of tasks."""

    def __init__(self, data: MetaDataset, ways: int, samples: int, num_tasks: int = -1) -> None:
        self.dataset, self.ways, self.samples, self.num_tasks = data, ways, samples, num_tasks
        self.sampled_descriptions: dict[int, Any] = {}

    def sample_task_description(self) -> list[tuple[int, int]]:
        classes = random.sample(self.dataset.labels, self.ways)
        members = {c: [i for i, label in self.dataset.indices_to_labels.items() if label == c] for c in classes}
        chosen = [(i, place) for place, c in enumerate(classes) for i in random.sample(members[c], self.samples)]
        random.shuffle(chosen)
        return chosen

    def get_task(self, description: list[tuple[int, int]]) -> list[Tensor]:
        x = torch.stack([self.dataset[i][0] for i, _ in description])
        return [x + 1e-6 * torch.randn_like(x), torch.tensor([place for _, place in description])]

    def __len__(self) -> int:
        return max(self.num_tasks, 1)

    def __getitem__(self, index: int) -> list[Tensor]:
        if index not in self.sampled_descriptions:
            self.sampled_descriptions[index] = self.sample_task_description()
        return self.get_task(self.sampled_descriptions[index])

    def sample(self) -> list[Tensor]:
        return self[random.randrange(len(self))]
