"""The classes that a command's ``--model`` and ``--data`` name, for the errors of their modules."""

import importlib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

_IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def import_named_classes(args: Sequence[str]) -> None:
    """Import the modules of the classes that a command names for learner and data, as parsing its arguments did.

    Args:
        args: The arguments. Import paths after ``--model`` and ``--data`` count, also those in configurations.

    Raises:
        Exception: What a module raises; not the error that there is no such module.
    """
    for name in _named(args):
        module = name.rpartition(".")[0]
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise


def _named(args: Sequence[str]) -> Iterable[str]:
    words = [part for argument in args for part in str(argument).split("=", 1)]
    for flag, value in pairwise(words):
        if flag in ("--model", "--data", "--model.class_path", "--data.class_path"):
            found: Any = [value]
        elif flag in ("--config", "-c") and Path(value).is_file():
            found = _in_configuration(Path(value))
        else:
            continue
        yield from (name for name in found if isinstance(name, str) and _IMPORT_PATH.fullmatch(name))


def _in_configuration(path: Path) -> list[Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):  # the parser has said it
        return []
    parts = [config.get(key) for key in ("model", "data")] if isinstance(config, dict) else []
    return [part.get("class_path") if isinstance(part, dict) else part for part in parts]
