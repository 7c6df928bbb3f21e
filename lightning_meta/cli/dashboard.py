"""``lightning-meta dashboard``: a workspace and a report of Weights & Biases for the runs of a project."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lightning_meta.cli.bad_input import one_message
from lightning_meta.cli.lightning_cli import MetaLearningCLI, run
from lightning_meta.cli.run_configuration import OF_SUBCOMMANDS
from lightning_meta.dashboard import ANY_LEARNER, RunKind, build_report, build_workspace, kind_of, sections_of
from lightning_meta.data.tables import check_output
from lightning_meta.data.vision.image_data_module import ImageDataModule
from lightning_meta.data.vision.omniglot import OmniglotDataModule

_OFFLINE = ("offline", "dryrun", "disabled")  # of WANDB_MODE
_HOW_TO_SAVE = (
    "log in by `wandb login` or set WANDB_API_KEY, unset WANDB_MODE, and run this again; or write the workspace to a "
    "file with --output FILE.json"
)


class _SavedCLI(MetaLearningCLI):
    """Lightning's command line for configurations that a run of any subcommand saved."""

    def add_arguments_to_parser(self, parser: Any) -> None:
        """Add the arguments of single subcommands, without effect."""
        for argument in OF_SUBCOMMANDS:
            parser.add_argument(f"--{argument}", default=None)


def dashboard(
    entity: str, project: str, config: list[str] | None = None, output: str | None = None, overwrite: bool = False
) -> Any:
    """Build a workspace and a report for the runs of a project, and save them to Weights & Biases.

    Args:
        entity: The user or team of Weights & Biases.
        project: The project, as in ``--trainer.logger.project`` of its runs.
        config: The configurations of a run, such as configs/sinusoid_maml.yaml: panels then show what its learner logs.
            Default: panels for classification and regression.
        output: A JSON file for the workspace, in place of saving to Weights & Biases.
        overwrite: Whether to replace the output file if it exists.

    Returns:
        The workspace.

    Raises:
        ConnectionError: If there is no key or no connection; nothing is saved.
    """
    for name, value in (("entity", entity), ("project", project)):
        if not value.strip() or "/" in value:
            raise ValueError(f"{name}={value!r} is no name: name the {name} alone, without slashes")
    path = None if output is None else check_json(output, overwrite)
    sections = sections_of(_kinds(config or []))
    workspace, report = (build(entity, project, sections) for build in (build_workspace, build_report))
    if path is not None:
        path.write_text(json.dumps(workspace._to_model().model_dump(mode="json", by_alias=True), indent=2) + "\n")
        return workspace
    _save(workspace, report, sum(len(section.panels) for section in sections))
    return workspace


def dashboard_command(args: Sequence[str]) -> Any:
    """Run ``lightning-meta dashboard``; bad input ends it with status 2, and a missing key or connection with 1."""
    parser = ArgumentParser(
        allow_abbrev=False,
        prog="lightning-meta dashboard",
        description="Build a workspace and a report of Weights & Biases for the runs of a project. Building needs no "
        "connection; saving needs a key.",
    )
    parser.add_function_arguments(dashboard, as_group=False, skip={"overwrite", "config"})
    parser.add_argument(
        "--config", action="append", type=str, help="A configuration of the runs, as for fit; may be given repeatedly."
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace the output file if it exists.")
    config = parser.parse_args(list(args))
    with one_message("lightning-meta dashboard"):
        try:
            workspace = dashboard(**vars(config))
        except ConnectionError as error:
            parser.exit(1, f"lightning-meta dashboard: {error}\n")
    if config.output is not None:
        print(f"The workspace is written to {config.output}", file=sys.stderr)
    return workspace


def check_json(output: str, overwrite: bool) -> Path:
    """Return the path of a JSON file to be written; arguments and errors as in `check_output`."""
    path = Path(output)
    if path.suffix != ".json":
        raise ValueError(f"output={output!r} must end in .json")
    return check_output(output, overwrite)


def _kinds(configs: list[str]) -> Sequence[RunKind]:
    if not configs:
        return ANY_LEARNER
    cli = run([f"--config={path}" for path in configs], cls=_SavedCLI, run=False)
    pictures = isinstance(cli.datamodule, ImageDataModule | OmniglotDataModule)
    return [kind_of(cli.model, pictures)]


def _save(workspace: Any, report: Any, panels: int) -> None:
    """Save both; raise a ConnectionError if that is not possible."""
    built = f"a workspace and a report with {panels} panels each are built"
    mode = os.environ.get("WANDB_MODE", "")
    if mode in _OFFLINE:
        raise ConnectionError(f"{built}, but not saved, because WANDB_MODE={mode}: {_HOW_TO_SAVE}")
    for name, part in (("workspace", workspace), ("report", report)):
        try:
            part.save()
        except Exception as error:  # the package raises this type itself where there is no key
            raise ConnectionError(
                f"{built}, but the {name} is not saved, which needs a key and a connection ({error}): {_HOW_TO_SAVE}"
            ) from error
