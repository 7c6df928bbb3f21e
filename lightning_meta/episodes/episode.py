"""Episodes: a task's support and query sets, or those of a batch of tasks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_meta.episodes.trees import leaves_of, map_leaves


class Support(NamedTuple):
    """A support set: inputs ``[support, ...]``, targets ``[support, ...]``, mask ``[support]`` or None."""

    x: Any
    y: Any
    mask: Tensor | None = None


class Episode(NamedTuple):
    """A task's support and query sets, or a batch of tasks.

    A batch has a leading task dimension everywhere; one task alone has none. Inputs and targets may be
    tensors or pytrees of tensors (a dict of token ids and attention masks, say) whose leaves all share the
    leading dimensions.

    Attributes:
        support_x: Inputs to adapt on, ``[tasks, support, ...]``.
        support_y: Their targets, ``[tasks, support, ...]``.
        query_x: Inputs on which the adapted model is evaluated, ``[tasks, query, ...]``.
        query_y: Their targets, ``[tasks, query, ...]``.
        support_mask: ``[tasks, support]``, True where an example counts; None where all do.
        query_mask: ``[tasks, query]``, True where an example counts; None where all do.
        ood_x: Out-of-distribution inputs, of classes that are not in the task, ``[tasks, ood, ...]``, for evaluating
            how well uncertainty tells them from the queries; None where there are none.
    """

    support_x: Any
    support_y: Any
    query_x: Any
    query_y: Any
    support_mask: Tensor | None = None
    query_mask: Tensor | None = None
    ood_x: Any = None

    @property
    def num_tasks(self) -> int:
        """The size of a batch's task dimension."""
        return leaves_of(self.support_x)[0].shape[0]

    @property
    def support(self) -> Support:
        """The support set: all that the inner loop may see."""
        return Support(self.support_x, self.support_y, self.support_mask)

    def select(self, tasks: Any) -> "Episode":
        """Index the task dimension: an int gives one task, a slice or an index tensor a smaller batch."""
        return map_leaves(lambda leaf: leaf[tasks], self)


def collate_episodes(episodes: Sequence[Episode] | Episode) -> Episode:
    """Stack single tasks into a batch, padding unequal sizes and marking the padding in the masks.

    Args:
        episodes: Tasks without a leading task dimension, or a batch, which is returned as it is.

    Returns:
        A batch ``[tasks, ...]``; with masks only if the tasks differ in size or one of them has a mask.

    Example:
        >>> query = torch.zeros(4, 2), torch.zeros(4)
        >>> tasks = [Episode(torch.zeros(shots, 2), torch.zeros(shots), *query) for shots in (1, 3)]
        >>> collate_episodes(tasks).support_mask
        tensor([[ True, False, False],
                [ True,  True,  True]])
    """
    if isinstance(episodes, Episode):
        return episodes
    support_x, support_y, support_mask = _stack_set([e.support for e in episodes])
    query_x, query_y, query_mask = _stack_set([Support(e.query_x, e.query_y, e.query_mask) for e in episodes])
    ood = [e.ood_x for e in episodes]
    ood_x = None if ood[0] is None else tree_map(lambda *leaves: torch.stack(leaves), *ood)
    return Episode(support_x, support_y, query_x, query_y, support_mask, query_mask, ood_x)


def joined_sets(task: Episode) -> Support:
    """Return one task's support and query sets as one set, ``[support + query, ...]``."""
    support, query = (task.support_x, task.support_y), (task.query_x, task.query_y)
    x, y = tree_map(lambda *leaves: torch.cat(leaves), support, query)
    if task.support_mask is None and task.query_mask is None:
        return Support(x, y)
    masks = _full_mask(task.support_x, task.support_mask), _full_mask(task.query_x, task.query_mask)
    return Support(x, y, torch.cat(masks))


def pad(leaf: Tensor, size: int, dim: int = 0) -> Tensor:
    """Append zeros until the dimension has this size."""
    missing = size - leaf.shape[dim]
    if missing == 0:
        return leaf
    return torch.cat([leaf, leaf.new_zeros(*leaf.shape[:dim], missing, *leaf.shape[dim + 1 :])], dim=dim)


def _full_mask(x: Any, mask: Tensor | None) -> Tensor:
    leaf = tree_leaves(x)[0]
    return torch.ones(leaf.shape[0], dtype=torch.bool, device=leaf.device) if mask is None else mask


def _stack_set(sets: list[Support]) -> Support:
    sizes = [tree_leaves(each.x)[0].shape[0] for each in sets]
    longest = max(sizes)
    mask = None
    if min(sizes) < longest or any(each.mask is not None for each in sets):
        mask = torch.zeros(len(sets), longest, dtype=torch.bool)
        for row, size, each in zip(mask, sizes, sets, strict=True):
            row[:size] = True if each.mask is None else each.mask
    x, y = tree_map(lambda *leaves: torch.stack([pad(leaf, longest) for leaf in leaves]), *[each[:2] for each in sets])
    return Support(x, y, mask)
