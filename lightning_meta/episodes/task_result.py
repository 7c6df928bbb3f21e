"""The report of a per-task function."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_meta.episodes.episode import pad
from lightning_meta.episodes.trees import map_leaves

MetaParameters = Mapping[str, Tensor]


class TaskResult(NamedTuple):
    """The report of one task; with a leading task dimension, of a batch.

    Attributes:
        loss: The loss, a scalar.
        outputs: The model's output on the query set after each recorded number of steps,
            ``[recorded, query, ...]``; the last is the adapted model's.
        support_losses: The support loss before each inner step, ``[steps]``.
        samples: In evaluation, the predictive distribution after the last step: the fields of `Samples` by name.
        novelty: In evaluation of tasks with ``ood_x``, for each kind of uncertainty its values on the queries,
            ``[query]``, and on the out-of-distribution examples, ``[ood]``, computed in one set.
        diagnostics: Scalars about the algorithm's progress, by name; training logs their means.
        carried: A pytree that the algorithm keeps for the next batch; see `TaskLearner.after_batch`.
    """

    loss: Tensor
    outputs: Tensor
    support_losses: Tensor
    samples: Mapping[str, Tensor] = {}
    novelty: Mapping[str, tuple[Tensor, Tensor]] = {}
    diagnostics: Mapping[str, Tensor] = {}
    carried: Any = ()


def merge_results(pieces: list[tuple[Tensor | None, TaskResult]], query: int) -> TaskResult:
    """Concatenate the reports of a batch's pieces, in the order of its tasks.

    Args:
        pieces: Task indices and the tasks' reports; None: the pieces are in order.
        query: The batch's number of queries; shorter outputs are padded with zeros.
    """
    results = [_padded(result, query) for _, result in pieces]
    if len(pieces) == 1 and pieces[0][0] is None:
        return results[0]
    merged = map_leaves(lambda *parts: torch.cat(parts), *results)
    indices = [own for own, _ in pieces if own is not None]
    if not indices:
        return merged
    order = torch.cat(indices).argsort()
    return map_leaves(lambda leaf: leaf[order.to(leaf.device)], merged)


def _padded(result: TaskResult, query: int) -> TaskResult:
    return result._replace(
        outputs=pad(result.outputs, query, 2),  # [tasks, recorded, query, ...]
        samples={name: pad(leaf, query, 2) for name, leaf in result.samples.items()},  # [tasks, samples, query, ...]
        novelty={name: (pad(own, query, 1), ood) for name, (own, ood) in result.novelty.items()},  # [tasks, query]
    )
