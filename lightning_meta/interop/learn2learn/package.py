"""learn2learn as an optional package."""

import importlib
from types import ModuleType
from typing import Any


def learn2learn(caller: str) -> ModuleType:
    """Import and return the package.

    Raises:
        ImportError: If it is not installed; names the function that needs it, and the cure.
    """
    try:
        return importlib.import_module("learn2learn")
    except ImportError as error:
        raise ImportError(
            f"{caller} needs learn2learn 0.2.0 (the extra lightning-meta[learn2learn]), which cannot be imported: "
            f"{error}. pip cannot build it on Python 3.11 or later; benchmarks/install_peers.sh and "
            "docs/how-to/coming-from-learn2learn.md show how"
        ) from error


def class_of(value: Any) -> str | None:
    """Return the name of a value's class if it is one of learn2learn's own; None for others and derived classes."""
    cls = type(value)
    return cls.__qualname__ if cls.__module__.split(".")[0] == "learn2learn" else None
