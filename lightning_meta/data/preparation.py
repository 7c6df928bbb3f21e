"""`Preparation`: how examples in files become tensors, as a checkpoint keeps it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import polars as pl
import torch
from torch import Tensor

from lightning_meta.data.tables import texts_of

_NAMED = 10  # classes in messages


def check_scale(of: str, *numbers: float) -> None:
    """Raise a ValueError unless numbers are finite floats, the last one, a standard deviation, above 0."""
    if not all(isinstance(number, float) and math.isfinite(number) for number in numbers) or not numbers[-1] > 0:
        raise ValueError(
            f"the scale of {of} must be finite numbers, with a standard deviation above 0, and is "
            f"{', '.join(repr(number)[:40] for number in numbers)}: look for values that are too large"
        )


def _listed(classes: tuple[str, ...]) -> str:
    return ", ".join(map(repr, classes[:_NAMED])) + (", ..." if len(classes) > _NAMED else "")


@dataclass(frozen=True)
class ClassTargets:
    """Class labels.

    Attributes:
        classes: The classes of all tasks, in the order of the model's outputs; None: a task has those of its support
            set, in sorted order.

    Raises:
        ValueError: If they are not two or more different texts.
    """

    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        classes = self.classes
        if classes is None:
            return
        if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be a tuple of texts, or None")
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError(f"classes must be two or more different ones, and are {_listed(classes)}")

    def labels(self, values: pl.Series, classes: tuple[str, ...]) -> Tensor:
        """Return the positions of values among classes, ``[rows]``; values that are no class raise a ValueError."""
        position = {name: number for number, name in enumerate(classes)}
        texts = texts_of(values).to_list()
        unknown = sorted({str(text) for text in texts if text not in position})
        if unknown:
            raise ValueError(
                f"column {values.name!r} holds {unknown[0]!r}, which is none of the classes {_listed(classes)}"
            )
        return torch.tensor([position[text] for text in texts], dtype=torch.int64)


@dataclass(frozen=True)
class RealTargets:
    """Real targets, standardized by the training tasks: ``(value - mean) / std``.

    Attributes:
        mean: The mean over all targets of the training tasks, in the target's units.
        std: Their standard deviation.

    Raises:
        ValueError: If one is not finite, or the deviation is not above 0.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        check_scale("the targets", self.mean, self.std)

    def standardized(self, values: pl.Series) -> Tensor:
        """Return standardized targets, ``[rows, 1]``; those that are too large raise a ValueError."""
        numbers = torch.from_numpy(values.cast(pl.Float64).to_numpy(writable=True))
        scaled = ((numbers - self.mean) / self.std).to(torch.get_default_dtype())
        infinite = scaled.isinf().nonzero()
        if len(infinite):
            row = int(infinite[0])
            raise ValueError(
                f"column {values.name!r} holds {values[row]} in row {row + 1}, which is too large: correct it, or "
                "remove the row"
            )
        return scaled[:, None]


class Preparation(ABC):
    """How rows of a table, or pictures in folders, become inputs and targets.

    What is learned from data (a vocabulary, scales, categories) is learned from training tasks alone. A data module
    with a preparation sets its attribute ``preparation`` in `setup`; checkpoints keep it, so that ``lightning-meta
    adapt`` prepares new examples in the same way.

    Args:
        target_column: The column of labels or targets.
        task_column: The column that names a row's task; None: all rows are of one task.
        targets: What the targets are.

    Raises:
        ValueError: If a column's name is no text.
    """

    kind: ClassVar[str]
    """The name of this kind of data in checkpoints and messages."""

    private_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that `read` adds to those of the source for `inputs` alone; they are no part of a result."""

    def __init__(self, target_column: str, task_column: str | None, targets: ClassTargets | RealTargets) -> None:
        if not isinstance(target_column, str) or not isinstance(task_column, str | None):
            raise ValueError("target_column must be a text, task_column a text or None")
        self.target_column = target_column
        self.task_column = task_column
        self.targets = targets

    @abstractmethod
    def read(self, source: str | Path, labelled: bool) -> pl.DataFrame:
        """Read examples from a file or folder, one row each, and check what `inputs` needs.

        Args:
            source: A table; for pictures a folder: of one folder per class if labelled, otherwise of pictures.
            labelled: Whether ``target_column`` must be there.

        Returns:
            All columns of the source, in its order, as they are there, and then ``private_columns``; for pictures in
            folders the columns ``file`` and, if labelled, ``target_column``.

        Raises:
            FileNotFoundError: If there is no such file or folder.
            ValueError: If the source is of another kind, or lacks a column; the message names it.
        """

    @abstractmethod
    def inputs(self, rows: pl.DataFrame) -> Any:
        """Return the model's inputs for rows that `read` returned, a pytree of tensors ``[rows, ...]``."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """Return the further arguments of this class's constructor by name, as plain values."""

    def state(self) -> dict[str, Any]:
        """Return what checkpoints keep: numbers, texts, and lists and dictionaries of these."""
        return {
            "kind": self.kind,
            "target_column": self.target_column,
            "task_column": self.task_column,
            "targets": asdict(self.targets),
            **self._own_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Build a preparation from what `state` returned.

        Raises:
            ValueError: If a value is missing or of another type.
        """
        own = dict(state)
        try:
            del own["kind"]
            of_targets = own.pop("targets")
            if isinstance(of_targets.get("classes"), list):
                of_targets = {**of_targets, "classes": tuple(of_targets["classes"])}
            targets = RealTargets(**of_targets) if "mean" in of_targets else ClassTargets(**of_targets)
            return cls(targets=targets, **own)
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
            raise ValueError(f"the checkpoint's preparation of {cls.kind} data cannot be used: {error}") from error
