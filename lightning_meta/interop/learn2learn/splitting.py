"""A task of learn2learn, labelled examples in one set, and an episode of a support and a query set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_meta.episodes import Episode
from lightning_meta.episodes.trees import leaves_of


def split_task(x: Any, y: Tensor, shots: int, query_shots: int | None = None, ways: int | None = None) -> Episode:
    """Split the examples of a task into support and query sets.

    For classification the first ``shots`` examples of each class are the support set, in whichever order the examples
    are. Real targets are those of a regression: the first ``shots`` examples are the support set.

    Args:
        x: Inputs ``[examples, ...]``, a pytree of tensors.
        y: Labels ``[examples]``, which must be 0, 1, ... without a gap, or real targets ``[examples, ...]``.
        shots: Support examples per class; for regression in all.
        query_shots: Query examples per class, or in all; None: all others.
        ways: The number of classes; None: any.

    Returns:
        One task, its sets ordered by label.

    Raises:
        ValueError: If there are too few examples, or other labels.

    Example:
        >>> episode = split_task(torch.arange(6.0), torch.tensor([1, 0, 0, 1, 1, 0]), shots=1)
        >>> episode.support_x, episode.query_x
        (tensor([1., 0.]), tensor([2., 5., 3., 4.]))
    """
    sizes = {leaf.shape[0] for leaf in leaves_of((x, y))}
    if len(sizes) > 1:
        raise ValueError(f"a task's data and labels have different numbers of examples, {sorted(sizes)}")
    if y.is_floating_point():
        groups = {"the task": torch.arange(len(y))}
    else:
        if y.dim() != 1:
            raise ValueError(f"a task's labels have the shape {tuple(y.shape)}, and must be [examples]")
        y = y.long()
        labels = y.unique().tolist()
        classes = len(labels) if ways is None else ways
        if labels != list(range(classes)):
            raise ValueError(
                f"ways={ways} but a task has the labels {labels}: they must be 0 to {classes - 1}; check NWays, and "
                "add RemapLabels to the transforms"
            )
        groups = {f"class {label}": (y == label).nonzero()[:, 0] for label in labels}
    needed = shots + (1 if query_shots is None else query_shots)
    for name, numbers in groups.items():
        if len(numbers) < needed:
            raise ValueError(
                f"shots={shots} and query_shots={query_shots} need {needed} examples, but {name} has {len(numbers)}: "
                "raise the k of KShots, or the number of samples"
            )
    end = None if query_shots is None else needed
    support = torch.cat([numbers[:shots] for numbers in groups.values()]).to(y.device)
    query = torch.cat([numbers[shots:end] for numbers in groups.values()]).to(y.device)
    (support_x, support_y), (query_x, query_y) = (
        tree_map(lambda leaf, rows=rows: leaf[rows], (x, y)) for rows in (support, query)
    )
    return Episode(support_x, support_y, query_x, query_y)


def join_task(episode: Episode) -> tuple[Any, Tensor]:
    """Return all examples of a task in the order in which learn2learn's loops expect them.

    Those of a class are together, its support examples first. So are the support examples of a regression.

    Args:
        episode: One task; examples that its masks leave out are left out.

    Returns:
        Inputs ``[examples, ...]`` and targets ``[examples, ...]``.
    """
    support, query = (
        tree_map(lambda leaf, mask=mask: leaf if mask is None else leaf[mask], (x, y))
        for x, y, mask in (
            (episode.support_x, episode.support_y, episode.support_mask),
            (episode.query_x, episode.query_y, episode.query_mask),
        )
    )
    x, y = tree_map(lambda *leaves: torch.cat(leaves), support, query)
    if y.is_floating_point():
        return x, y
    order = y.argsort(stable=True)
    return tree_map(lambda leaf: leaf[order], (x, y))
