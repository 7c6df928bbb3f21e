"""``lightning-meta analyze WHAT``: what a trained learner's tasks say about its hyper-parameters and its future."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import lightning as L

from lightning_meta.cli.analyze.batch import batch_report
from lightning_meta.cli.analyze.certify import certify_report
from lightning_meta.cli.analyze.curvature import curvature_report
from lightning_meta.cli.analyze.diagnose import diagnose_report
from lightning_meta.cli.analyze.rates import rates_report
from lightning_meta.cli.analyze.report import Report, output_folder
from lightning_meta.cli.bad_input import one_message
from lightning_meta.cli.lightning_cli import MetaLearningCLI, run
from lightning_meta.cli.run_configuration import OF_SUBCOMMANDS
from lightning_meta.cli.saved import say_saved
from lightning_meta.cli.trained import add_checkpoint_arguments, trained_learner

ANALYSES: dict[str, Callable[..., Report]] = {
    "curvature": curvature_report,
    "certify": certify_report,
    "batch": batch_report,
    "rates": rates_report,
    "diagnose": diagnose_report,
}
"""Functions of learner and data module; their further arguments are flags."""

_SILENT: dict[str, Any] = {
    "logger": False,
    "callbacks": None,
    "enable_checkpointing": False,
    "devices": 1,
    "num_nodes": 1,
}
_SILENT |= {"enable_progress_bar": False, "enable_model_summary": False, "strategy": "auto"}
_USAGE = "lightning-meta analyze {} --config FILE.yaml [--ckpt_path CHECKPOINT] [--output FOLDER] [--KEY VALUE ...]"


def analyze_command(args: Sequence[str]) -> Report:
    """Run ``lightning-meta analyze``: print a report, save it, return it; bad input ends it with status 2."""
    what = args[0] if args else "--help"
    if what in ("-h", "--help"):
        print(_overview())
        sys.exit(0)
    if what not in ANALYSES:
        near = get_close_matches(what, ANALYSES, n=1)
        cure = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(ANALYSES)}"
        sys.stderr.write(f"lightning-meta analyze: error: there is no analysis {what!r}: {cure}\n")
        sys.exit(2)
    program = f"lightning-meta analyze {what}"
    texts = {"prog": program, "usage": _USAGE.format(what), "description": _summary(ANALYSES[what])}
    texts["epilog"] = f"Flags of a class: {program} --model.help MAML"
    with one_message(program):
        try:
            with _quiet_lightning():
                cli = run(list(args[1:]), cls=_command_line(ANALYSES[what]), run=False, texts=texts)
            return _reported(what, cli)
        except KeyboardInterrupt:
            sys.stderr.write("Stopped. Nothing was saved.\n")
            sys.exit(130)


def _reported(what: str, cli: MetaLearningCLI) -> Report:
    config, analysis, data = cli.config, ANALYSES[what], cli.datamodule
    with output_folder(config.output, config.overwrite) as folder:
        if config.ckpt_path is None:
            data.prepare_data()
            data.setup("fit")
            learner = cli.model
        else:
            learner = trained_learner(cli, config.ckpt_path, config.accept_differences)
        with _quiet_lightning():
            trainer = L.Trainer(**{**cli.config_init.trainer, **_SILENT})
        learner.to(trainer.strategy.root_device).eval()
        arguments = {name: config[name] for name in _own_arguments(analysis)}
        with _quiet_lightning():
            report = analysis(learner, data, **arguments)
        report.show()
        if folder is not None:
            report.save(folder, analysis=what, arguments=arguments, ckpt_path=config.ckpt_path)
            say_saved(report=folder)
    return report


def _command_line(analysis: Callable[..., Report]) -> type[MetaLearningCLI]:
    class AnalyzeCLI(MetaLearningCLI):
        """Lightning's command line with the arguments of an analysis."""

        def add_arguments_to_parser(self, parser: Any) -> None:
            """Add the checkpoint, the output, and the analysis's own arguments."""
            add = parser.add_argument
            parser.add_function_arguments(analysis, as_group=False, skip={"learner", "data"})
            add_checkpoint_arguments(parser, without="an untrained one")
            add("--output", type=str | None, default=None, help="A folder for report.json and pictures.")
            add("--overwrite", action="store_true", help="Write into the output folder even if it is not empty.")
            for argument in OF_SUBCOMMANDS[1:]:  # `ckpt_path` is its own
                add(f"--{argument}", default=None, help="In configurations that a run saved; without effect.")

    return AnalyzeCLI


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Leave out what Lightning says about devices and services at the start; its warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _own_arguments(analysis: Callable[..., Report]) -> list[str]:
    return [name for name in inspect.signature(analysis).parameters if name not in ("learner", "data")]


def summaries() -> dict[str, str]:
    """Return what each analysis says, in a sentence, by its name."""
    return {name: _summary(analysis) for name, analysis in ANALYSES.items()}


def _summary(analysis: Callable[..., Report]) -> str:
    return (inspect.getdoc(analysis) or "").splitlines()[0]


def _overview() -> str:
    lines = [f"  {name:<10} {summary}" for name, summary in summaries().items()]
    usage = f"usage: {_USAGE.format('WHAT')}"
    more = f"All flags of an analysis: lightning-meta analyze {next(iter(ANALYSES))} --help"
    return "\n".join([usage, "", "analyses:", *lines, "", more])
