"""Lightning's part of the command line: ``lightning-meta fit|validate|test|predict --config configs/NAME.yaml``."""

import io
import json
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import polars as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lightning_meta.algorithms.baselines
import lightning_meta.models  # noqa: F401 (imported so that class names without a module path resolve)
from lightning_meta.cli.named_classes import import_named_classes
from lightning_meta.cli.progress_bar import AdaptationProgressBar
from lightning_meta.cli.result_table import print_results
from lightning_meta.cli.run_configuration import log_configuration
from lightning_meta.cli.saved import has_run_folder, log_folder, say_saved, say_training_saved
from lightning_meta.data import TaskDataModule
from lightning_meta.data.base import scope_of
from lightning_meta.data.tables import write_table
from lightning_meta.learners.task_learner import TaskLearner

_SUBCOMMAND = {
    "usage": "lightning-meta {0} --config FILE.yaml [--KEY VALUE ...]",
    "epilog": "Flags of a class: lightning-meta {0} --model.help MAML",
}
_WHOLE_FLAGS = {"allow_abbrev": False}  # else a mistyped flag may count as another one


class SaveConfig(SaveConfigCallback):
    """Saves the configuration beside the logs, never over a file that exists.

    With Weights & Biases it is logged to the run, which has no folder; without a logger it is not saved.
    """

    path: Path | None = None
    """Where this process saved it."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Save to a new file or to the run."""
        to_folder = self.save_to_log_dir and not self.already_saved
        self.save_to_log_dir = to_folder and bool(trainer.loggers) and not isinstance(trainer.logger, WandbLogger)
        if self.save_to_log_dir:
            folder = Path(trainer.log_dir)  # all processes must ask for it
            if trainer.is_global_zero:
                self.path = _new_file(folder, self.config_filename)
                self.config_filename = self.path.name
        super().setup(trainer, pl_module, stage)
        self.save_to_log_dir = to_folder

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Log the configuration to runs of Weights & Biases."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                values = json.loads(self.parser.dump(self.config, format="json"))
                log_configuration(logger, self.parser.dump(self.config, skip_none=False), values)


def _new_file(folder: Path, name: str) -> Path:
    """Return ``config.yaml``, or if it exists the first of ``config_2.yaml``, ``config_3.yaml``, ... that does not."""
    first = folder / name
    further = (first.with_stem(f"{first.stem}_{number}") for number in count(2))
    return next(path for path in chain([first], further) if not path.exists())


class MetaLearningCLI(LightningCLI):
    """Lightning's command line, with saved predictions, and with flags that a checkpoint does not override."""

    trainer: Any  # Lightning's own annotation lacks attributes of its trainer

    def parse_arguments(self, parser: Any, args: ArgsType) -> None:
        """Parse the arguments; that they are also those of the process is right here.

        Of a module that fails on import, jsonargparse says only that it is not found: its own error is raised instead.
        """
        said = io.StringIO()
        try:
            with warnings.catch_warnings(), redirect_stderr(said):
                warnings.filterwarnings("ignore", "LightningCLI's args parameter")
                super().parse_arguments(parser, args)
        except SystemExit as stopped:
            given = sys.argv[1:] if args is None else args
            if stopped.code == 2 and isinstance(given, list):
                import_named_classes(given)
            raise
        finally:
            sys.stderr.write(said.getvalue())

    def before_instantiate_classes(self) -> None:
        """Let CSV files go to ``default_root_dir``, unless the logger names another folder."""
        trainer = self._get(self.config, "trainer")
        logger, root = trainer.logger, trainer.default_root_dir
        is_csv = getattr(logger, "class_path", "").endswith(".CSVLogger")
        if root is not None and is_csv and str(logger.init_args.save_dir) == ".":
            logger.init_args.save_dir = str(root)

    def _parse_ckpt_path(self) -> None:
        """Keep the arguments as given; Lightning would replace them by the checkpoint's without a message."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Make the trainer, with a progress bar that shows the metric after adaptation unless another is given."""
        given = self._get(self.config_init, "trainer")
        callbacks = given.callbacks or []
        callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if given.enable_progress_bar is not False and not given.barebones:
            callbacks += [] if any(isinstance(c, ProgressBar) for c in callbacks) else [AdaptationProgressBar()]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def fit(self, **options: Any) -> None:
        """Train, and say where things are saved, also after Ctrl-C, with which Lightning ends the process."""
        try:
            self.trainer.fit(**options)
        except SystemExit as stopped:
            by_signal = isinstance(stopped.__context__, KeyboardInterrupt) or isinstance(stopped, SIGTERMException)
            self._say_training_saved(interrupted=by_signal)
            raise
        self._say_training_saved(interrupted=False)

    def _say_training_saved(self, interrupted: bool) -> None:
        saved = [callback.path for callback in self.trainer.callbacks if isinstance(callback, SaveConfig)]
        say_training_saved(self.trainer, saved[0] if saved else None, interrupted)

    def validate(self, verbose: bool = True, **options: Any) -> None:
        """Validate; ``verbose`` prints the table of this library in place of Lightning's."""
        self.trainer.validate(verbose=False, **options)
        self._print_results("val", verbose)
        folder = log_folder(self.trainer)
        say_saved(metrics=None if folder is None else folder / "metrics.csv", logs=folder)

    def before_test(self) -> None:
        """Refuse to replace a file, before the run."""
        self._check_free("per_task.csv")

    def test(self, verbose: bool = True, **options: Any) -> None:
        """Test; ``verbose`` prints the table of this library in place of Lightning's. Save metrics by task."""
        self.trainer.test(verbose=False, **options)
        values = self._print_results("test", verbose)
        path = None if self.trainer.fast_dev_run else self._folder() / "per_task.csv"
        if path is not None and self.trainer.is_global_zero:
            write_table(pl.DataFrame(values).with_row_index("task"), path)
        say_saved(**{"metrics of each task": path, "logs": log_folder(self.trainer)})

    def before_predict(self) -> None:
        """Refuse to replace a file, before the run."""
        if self._get(self.config_init, "return_predictions") is not False:
            self._check_free(self._predictions_file())

    def after_predict(self) -> None:
        """Save the outputs as ``predictions.pt``, a list with a tensor ``[tasks, query, ...]`` for each batch.

        Each of several processes saves its own, as ``predictions_rank0.pt``, ``predictions_rank1.pt``, ...
        """
        loop = self.trainer.predict_loop
        if self.trainer.fast_dev_run or not loop.return_predictions:
            say_saved()
            return
        folder = self._folder()
        path = folder / self._predictions_file()
        torch.save(loop.predictions, path)
        say_saved(outputs=path if self.trainer.world_size == 1 else folder)

    def _predictions_file(self) -> str:
        rank = f"_rank{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        return f"predictions{rank}.pt"

    def _print_results(self, stage: Literal["val", "test"], verbose: bool) -> dict[str, Any]:
        values = {name: value.cpu().numpy() for name, value in self.model.per_task(stage).items()}
        if verbose and values and self.trainer.is_global_zero:
            tasks = len(next(iter(values.values())))
            print_results(self.trainer.callback_metrics, stage, tasks, scope_of(self.datamodule))
        return values

    def _check_free(self, name: str) -> None:
        path = Path(self.trainer.default_root_dir) / name
        replaces = not (self.trainer.fast_dev_run or has_run_folder(self.trainer)) and path.exists()
        if replaces and self.trainer.is_global_zero:
            raise FileExistsError(
                f"{str(path)!r} exists and would be replaced: move it, or save to another folder with "
                "--trainer.default_root_dir"
            )

    def _folder(self) -> Path:
        folder = Path(self.trainer.strategy.broadcast(log_folder(self.trainer) or self.trainer.default_root_dir))
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def only(subcommand: str) -> type[MetaLearningCLI]:
    """Return the command line with one of its subcommands: the parsers of the others take time to make."""
    kept = {subcommand: MetaLearningCLI.subcommands()[subcommand]}
    return type(MetaLearningCLI.__name__, (MetaLearningCLI,), {"subcommands": staticmethod(lambda: kept)})


def run(
    args: ArgsType = None,
    cls: type[MetaLearningCLI] = MetaLearningCLI,
    run: bool = True,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> MetaLearningCLI:
    """Build learner, data and trainer from arguments as in `lightning_meta.cli.main`.

    Args:
        args: The arguments.
        cls: The class of the command line.
        run: Whether the first argument is ``fit``, ``validate``, ``test`` or ``predict``, to be run.
        texts: Texts of the help, such as ``usage``; they must be those of `argparse.ArgumentParser`.
    """
    return cls(
        TaskLearner,
        TaskDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        seed_everything_default=0,
        trainer_defaults={"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}},
        parser_kwargs={"prog": "lightning-meta", **_WHOLE_FLAGS, **texts}
        | {
            name: _WHOLE_FLAGS | {key: text.format(name) for key, text in _SUBCOMMAND.items()}
            for name in cls.subcommands()
        },
        args=args,
        run=run,
    )
