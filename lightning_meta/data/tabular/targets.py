"""The target column of a table, in regression and classification."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from lightning_meta.data.preparation import ClassTargets, RealTargets
from lightning_meta.data.tables import names_of
from lightning_meta.data.tabular.columns import holds_dates, numbers_of

TaskKind = Literal["regression", "classification"]


def target_values(column: pl.Series, task: TaskKind) -> pl.Series:
    """Return targets as numbers, or classes as texts, with null where a target is missing.

    Raises:
        ValueError: If a value is no number in regression, or a fraction in classification.
    """
    if task == "regression":
        try:
            return number_targets(column)
        except ValueError as error:
            raise ValueError(f"target_{error}; for classes use task='classification'") from error
    texts = names_of(column)
    known = texts.drop_nulls()
    numbers = known.cast(pl.Float64, strict=False)
    fractions = known.filter(numbers.is_finite() & (numbers % 1 != 0))
    if len(fractions) and not numbers.null_count():
        raise ValueError(
            f"target_column {column.name!r} holds {fractions[0]}, which is no class: use task='regression'"
        )
    return texts


def number_targets(column: pl.Series) -> pl.Series:
    """Return numbers, with null where one is missing.

    Raises:
        ValueError: If a value is no number, or a date.
    """
    if holds_dates(column):
        raise ValueError(
            f"column {column.name!r} holds dates, such as {str(column.drop_nulls()[0])!r}, and targets are numbers: "
            "turn them into numbers, such as days since an event"
        )
    return pl.Series(column.name, numbers_of(column), nan_to_null=True)


def class_targets(texts: pl.Series) -> ClassTargets:
    """Return the classes among texts: in numerical order if all are whole numbers, else in alphabetical order."""
    classes = texts.unique().to_list()
    numeric = texts.cast(pl.Int64, strict=False).null_count() == 0
    return ClassTargets(tuple(sorted(classes, key=lambda name: (int(name), name)) if numeric else sorted(classes)))


def real_targets(values: pl.Series) -> RealTargets:
    """Return the scale of numbers.

    Raises:
        ValueError: If all are equal.
    """
    numbers = values.to_numpy()
    if numbers.min() == numbers.max():
        raise ValueError(
            f"target_column {values.name!r} is {numbers[0]} in all training tasks: there is nothing to learn"
        )
    return RealTargets(float(np.mean(numbers)), float(np.std(numbers)))


def check_classes_are_trained(name: str, targets: ClassTargets, training: pl.Series) -> None:
    """Raise a ValueError for a class that is in no training task."""
    unseen = sorted(set(targets.classes or ()) - set(training.unique().to_list()))
    if unseen:
        raise ValueError(
            f"target_column {name!r} holds the class {unseen[0]!r} in validation or test tasks only: give its rows to "
            "training tasks by split_column, or leave them out"
        )
