"""Tables of shown episodes and of the metrics of all tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_meta.callbacks.episodes.inputs import cells, shown_sets
from lightning_meta.callbacks.episodes.own_units import in_own_units
from lightning_meta.callbacks.episodes.record import ShownEpisode
from lightning_meta.episodes.trees import leaves_of, map_leaves

_MOST_TASKS = 10_000  # as many rows as Weights & Biases shows


class Table(NamedTuple):
    """Columns by name, all of the same length; a cell is a number, a text, a picture ``[height, width, 3]`` or None."""

    columns: dict[str, list[Any]]

    def rows(self) -> list[list[Any]]:
        """Return the rows."""
        return [list(row) for row in zip(*self.columns.values(), strict=True)]


def episode_table(episodes: list[ShownEpisode], num_examples: int, preparation: Any = None) -> Table:
    """Return a row for each support and query example of some tasks; predictions are for queries.

    For classes ``confidence`` is the probability of the predicted class and ``uncertainty`` the entropy in nats; for
    real targets ``uncertainty`` is the predictive standard deviation. ``epistemic`` is the part of it that more support
    examples would remove. They are None where a learner does not know them. Standardized targets are in their own
    units again, as are their predictions and deviations.

    Args:
        episodes: The tasks, with their predictions.
        num_examples: The most examples to show of a support or query set, evenly spread over the set.
        preparation: The data module's preparation, which turns inputs into pixels, ids into words and standardized
            targets into their own units again.
    """
    rows: list[dict[str, Any]] = []
    for shown in (in_own_units(shown, preparation) for shown in episodes):
        task = shown.task
        sizes = len(leaves_of(task.support_x)[0]), len(leaves_of(task.query_x)[0])
        chosen = [evenly_spread(size, num_examples) for size in sizes]
        support_x, query_x = (_rows(x, own) for x, own in zip((task.support_x, task.query_x), chosen, strict=True))
        kind, shown_x = shown_sets(support_x, query_x, preparation)
        for name, inputs, y, own_rows in zip(
            ("support", "query"), shown_x, (task.support_y, task.query_y), chosen, strict=True
        ):
            y = _rows(y, own_rows)
            predicted = prediction_columns(shown, y, own_rows) if name == "query" else {}
            for row, (own, truth) in enumerate(zip(inputs, cells(y), strict=True)):
                start = {"task": shown.number, "set": name, kind: own, "truth": truth}
                rows.append(start | {column: values[row] for column, values in predicted.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table({name: [row.get(name) for row in rows] for name in names})


def _rows(tree: Any, chosen: Tensor) -> Any:
    """Return some rows of a pytree of tensors."""
    return map_leaves(lambda leaf: leaf[chosen], tree)


def prediction_columns(shown: ShownEpisode, truth: Any, chosen: Tensor) -> dict[str, list[Any]]:
    """Return the columns of predictions for some queries ``[chosen]`` with these targets."""
    mean, total, _, epistemic = shown.prediction
    mean = mean[chosen]
    total, epistemic = (None if part is None else part[chosen] for part in (total, epistemic))
    if not isinstance(truth, Tensor):
        return {"prediction": cells(mean)}
    if shown.likelihood == "bernoulli" and mean[0].numel() == 1:
        positive = mean.reshape(-1, 1)
        columns = _class_columns(torch.cat([1 - positive, positive], dim=1), truth.flatten() > 0.5)
    elif predicts_classes(mean, truth):
        columns = _class_columns(mean, truth)
    else:
        columns = {"prediction": cells(mean)}
        if shown.likelihood == "gaussian":  # from variances
            total, epistemic = (None if part is None else part.sqrt() for part in (total, epistemic))
    nothing = [None] * len(mean)
    columns["uncertainty"] = nothing if total is None else cells(total)
    columns["epistemic"] = nothing if epistemic is None else cells(epistemic)
    return columns


def _class_columns(probabilities: Tensor, truth: Tensor) -> dict[str, list[Any]]:
    """Return the columns of class probabilities ``[query, classes]`` for labels ``[query]``, ignored where negative."""
    confidence, predicted = probabilities.max(1)
    right = [None if label < 0 else own == label for own, label in zip(predicted.tolist(), truth.tolist(), strict=True)]
    return {"prediction": predicted.tolist(), "correct": right, "confidence": confidence.tolist()}


def predicts_classes(mean: Tensor, truth: Tensor) -> bool:
    """Whether a prediction is class probabilities ``[query, classes]`` for labels ``[query]``."""
    return not truth.is_floating_point() and mean.ndim == 2 and truth.ndim == 1


def per_task_table(per_task: Mapping[str, Tensor]) -> Table:
    """Return a row for each task with its metrics, those by inner step left out."""
    kept = {name: values[:_MOST_TASKS] for name, values in per_task.items() if "_step_" not in name}
    tasks = len(next(iter(kept.values())))
    return Table({"task": list(range(tasks))} | {name: values.float().tolist() for name, values in kept.items()})


def evenly_spread(size: int, most: int) -> Tensor:
    """Return at most so many positions of a set, from the first to the last."""
    return torch.from_numpy(np.linspace(0, size - 1, min(size, most)).round().astype(np.int64))
