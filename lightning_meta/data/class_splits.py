"""Splits of classes into those of training, validation and test."""

import hashlib
from collections.abc import Iterable

from lightning_meta import arguments
from lightning_meta.data.episodes import Split


def check_class_fractions(val_classes: float, test_classes: float) -> None:
    """Raise a ValueError unless both are fractions that leave classes to train on."""
    arguments.check_fraction("val_classes", val_classes)
    arguments.check_fraction("test_classes", test_classes)
    if val_classes + test_classes >= 1:
        raise ValueError(
            f"val_classes={val_classes} and test_classes={test_classes} leave no classes to train on: their sum must "
            "be less than 1"
        )


def split_classes(names: Iterable[str], val_classes: float, test_classes: float) -> dict[Split, list[str]]:
    """Share classes out at random; the same names are always shared out in the same way.

    Classes are put into random order by a digest of their names, which no version of any library changes.

    Args:
        names: The names of the classes.
        val_classes: The fraction of classes for validation, rounded to whole classes.
        test_classes: The fraction for test.
    """
    order = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    test, val = round(test_classes * len(order)), round(val_classes * len(order))
    return {"train": order[test + val :], "val": order[test : test + val], "test": order[:test]}
