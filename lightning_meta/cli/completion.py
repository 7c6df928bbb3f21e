"""``lightning-meta --print_completion bash|zsh``: a script that completes commands and flags with the Tab key."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import isabstract
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import lightning as L
from jsonargparse import ArgumentParser, capture_parser

import lightning_meta.algorithms
import lightning_meta.data
from lightning_meta.cli.analyze.command import summaries
from lightning_meta.cli.lightning_cli import run
from lightning_meta.cli.overview import SUMMARIES

FIRST_WORDS: dict[str, Callable[[], dict[str, str]]] = {"analyze": summaries}
"""Commands whose flags depend on their first word, and what these words mean."""

SHELLS = ("bash", "zsh")
_FILES = ("ckpt_path", "support", "query", "output", "file", "config")
_FOLDERS = ("root", "cache_dir", "default_root_dir")


def print_completion(args: Sequence[str], commands: Mapping[str, Callable[[Sequence[str]], Any]]) -> None:
    """Run ``lightning-meta --print_completion``; bad input ends it with status 2."""
    parser = argparse.ArgumentParser("lightning-meta", usage="lightning-meta --print_completion bash|zsh")
    parser.add_argument("--print_completion", choices=SHELLS, required=True)
    shell = parser.parse_args(list(args)).print_completion
    try:
        print(completion_script(shell, commands))
    except ImportError as error:
        parser.exit(2, f"lightning-meta: error: {error}\n")


def completion_script(shell: str, commands: Mapping[str, Callable[[Sequence[str]], Any]]) -> str:
    """Return the completion script of a shell.

    The flags of a learner or data module are known only when it is chosen; the script offers those of all that the
    library has. It holds all words itself: completing starts no Python, which would take seconds to import torch.

    Args:
        shell: "bash" or "zsh".
        commands: The commands besides Lightning's, by name.

    Raises:
        ImportError: If shtab is not installed.
    """
    try:
        shtab = importlib.import_module("shtab")
    except ImportError as error:
        raise ImportError("--print_completion needs shtab: pip install 'lightning-meta[completion]'") from error
    root = argparse.ArgumentParser("lightning-meta")
    root.add_argument("--version", action="store_true")
    root.add_argument("--print_completion", choices=SHELLS)
    places = root.add_subparsers(metavar="command")
    for name, parser in _subparsers(capture_parser(run, ["fit"])).items():
        _Words(places.add_parser(name, help=SUMMARIES[name]), shtab).add_all(parser)
    for name, command in commands.items():
        place = places.add_parser(name, help=SUMMARIES[name])
        if name not in FIRST_WORDS:
            _Words(place, shtab).add_all(capture_parser(command, []))
            continue
        inner = place.add_subparsers(metavar="what")
        for word, summary in FIRST_WORDS[name]().items():
            _Words(inner.add_parser(word, help=summary), shtab).add_all(capture_parser(command, [word]))
    return shtab.complete(root, shell)


class _Words:
    """Adds what a parser of jsonargparse takes to a plain parser, without types and texts."""

    def __init__(self, target: argparse.ArgumentParser, shtab: Any) -> None:
        self.target = target
        self.shtab = shtab

    def add_all(self, parser: ArgumentParser) -> None:
        """Add all options and subcommands, and with ``--model`` and ``--data`` the options of the library's classes."""
        self.add(parser._actions)
        for key, package in (("model", lightning_meta.algorithms), ("data", lightning_meta.data)):
            if f"--{key}" not in parser._option_string_actions:
                continue
            classes = _concrete_classes(package)
            self.target._option_string_actions[f"--{key}"].choices = [cls.__name__ for cls in classes]
            for cls in classes:
                of_class = ArgumentParser(exit_on_error=False)
                of_class.add_class_arguments(cls, key, fail_untyped=False)
                self.add(of_class._actions)
        for name, inner in _subparsers(parser).items():
            if self.target._subparsers is None:
                places = self.target.add_subparsers(metavar="command")
            _Words(places.add_parser(name, help=name), self.shtab).add_all(inner)

    def add(self, actions: Iterable[argparse.Action]) -> None:
        """Add options that are not there yet."""
        for action in actions:
            flags = [flag for flag in action.option_strings if not flag.endswith(("+", ".help"))]
            if not flags or flags[0] in self.target._option_string_actions:
                continue
            if action.nargs == 0:
                self.target.add_argument(*flags, action="store_true")
                continue
            choices = action.choices or _choices(getattr(action, "_typehint", None))
            name = flags[-1].removeprefix("--").split(".")[-1]
            repeats = "append" if name == "config" else "store"  # zsh completes other options once
            added: Any = self.target.add_argument(*flags, choices=choices or None, action=repeats)
            if name in (*_FILES, *_FOLDERS):
                added.complete = self.shtab.FILE if name in _FILES else self.shtab.DIRECTORY


def _subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def _concrete_classes(package: Any) -> list[type]:
    classes = [getattr(package, name) for name in package.__all__]
    bases = (L.LightningModule, L.LightningDataModule)
    return [cls for cls in classes if issubclass(cls, bases) and not isabstract(cls)]


def _choices(typehint: Any) -> list[str]:
    """The words that a type allows: those of ``Literal``, "true" and "false"."""
    if typehint is bool:
        return ["true", "false"]
    if get_origin(typehint) is Literal:
        return [str(value) for value in get_args(typehint)]
    if get_origin(typehint) in (Union, UnionType):
        kinds = [kind for kind in get_args(typehint) if kind is not type(None)]
        each = [_choices(kind) for kind in kinds]
        return [word for words in each for word in words] if all(each) else []
    return []
