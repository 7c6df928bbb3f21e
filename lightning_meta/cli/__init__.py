"""The command line, ``lightning-meta``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.cli import ArgsType

from lightning_meta.cli.adapt import adapt_command
from lightning_meta.cli.analyze import analyze_command
from lightning_meta.cli.bad_input import one_message
from lightning_meta.cli.baselines import baselines_command
from lightning_meta.cli.completion import print_completion
from lightning_meta.cli.dashboard import dashboard_command
from lightning_meta.cli.lightning_cli import MetaLearningCLI, only, run
from lightning_meta.cli.overview import overview, unknown_command
from lightning_meta.version import __version__

_COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "adapt": adapt_command,
    "analyze": analyze_command,
    "baselines": baselines_command,
    "dashboard": dashboard_command,
}


def main(args: ArgsType = None) -> Any:
    """Run the command line.

    Args:
        args: Arguments as a list of strings, or a configuration as a dictionary; None: those of the process.

    Returns:
        For ``adapt`` the predictions, for ``analyze`` the report, for ``baselines`` the table, for ``dashboard`` the
        workspace, otherwise the finished command line, with ``trainer``, ``model`` and ``datamodule``.
    """
    given = sys.argv[1:] if args is None else args
    if not isinstance(given, list):
        return run(args)
    names = [*MetaLearningCLI.subcommands(), *_COMMANDS]
    first, *others = given or ["--help"]
    if first in _COMMANDS:
        return _COMMANDS[first](others)
    if first in ("-h", "--help"):
        print(overview(names))
    elif first == "--version":
        print(f"lightning-meta {__version__}")
    elif first.split("=")[0] == "--print_completion":
        print_completion([first, *others], _COMMANDS)
    elif first in names:
        return run(args, only(first))
    elif first.startswith("-"):
        return run(args)
    else:
        sys.stderr.write(unknown_command(first, names))
        sys.exit(2)
    sys.exit(0)


def command() -> None:
    """Run ``lightning-meta``; bad input ends it with status 2 and one message, other errors with their traceback."""
    with one_message("lightning-meta"):
        main()
