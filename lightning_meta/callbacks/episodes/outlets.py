"""What each kind of logger shows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lightning_meta.callbacks.episodes.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Shown(NamedTuple):
    """What the dashboard shows of an evaluation.

    Attributes:
        section: The start of the names of figures, tables and histograms, such as "val_episodes".
        scalars: Numbers by their whole names.
        pictures: Rendered figures by name, ``[height, width, 3]`` of dtype uint8.
        tables: Tables by name.
        histograms: Values ``[values]`` by name.
    """

    section: str
    scalars: dict[str, float]
    pictures: Mapping[str, NDArray[np.uint8]]
    tables: Mapping[str, Table]
    histograms: Mapping[str, Tensor]


def rendered(figure: Figure) -> NDArray[np.uint8]:
    """Return a figure's pixels, ``[height, width, 3]``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


class Outlet(ABC):
    """What one logger shows.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    @abstractmethod
    def show(self, shown: Shown, step: int) -> None:
        """Log what an evaluation after this many training steps shows."""


class ScalarOutlet(Outlet):
    """Any logger: scalars alone."""

    def show(self, shown: Shown, step: int) -> None:
        """Log the scalars."""
        _log_scalars(self.logger, shown, step)


class FolderOutlet(Outlet):
    """A logger with a folder: scalars, and pictures as PNG and tables as CSV files in ``episodes/STAGE/step_N``."""

    def show(self, shown: Shown, step: int) -> None:
        """Log the scalars and save the files."""
        _log_scalars(self.logger, shown, step)
        if is_remote(self.logger):
            return
        folder = _folder(self.logger, shown, step)
        for name, pixels in shown.pictures.items():
            Image.fromarray(pixels).save(folder / f"{name}.png")
        _save_tables(shown, folder)


class TensorBoardOutlet(Outlet):
    """TensorBoard: scalars, pictures and histograms; tables as CSV files beside the events."""

    def show(self, shown: Shown, step: int) -> None:
        """Log everything."""
        _log_scalars(self.logger, shown, step)
        writer = self.logger.experiment
        for name, pixels in shown.pictures.items():
            writer.add_image(f"{shown.section}/{name}", pixels, step, dataformats="HWC")
        for name, values in shown.histograms.items():
            writer.add_histogram(f"{shown.section}/{name}", values, step)
        if not is_remote(self.logger):
            _save_tables(shown, _folder(self.logger, shown, step))


class WandbOutlet(Outlet):
    """Weights & Biases: everything, with ``trainer/global_step`` as the axis."""

    def show(self, shown: Shown, step: int) -> None:
        """Log everything at once."""
        import wandb

        media: dict[str, Any] = {name: wandb.Image(Image.fromarray(own)) for name, own in shown.pictures.items()}
        media |= {name: wandb.Histogram(values.tolist()) for name, values in shown.histograms.items()}
        for name, table in shown.tables.items():
            rows = [[_wandb_cell(cell) for cell in row] for row in table.rows()]
            media[name] = wandb.Table(columns=list(table.columns), data=rows)
        named = {f"{shown.section}/{name}": value for name, value in media.items()}
        self.logger.log_metrics({**shown.scalars, **named}, step)


def outlet_of(logger: Logger) -> Outlet:
    """Return what a logger shows."""
    if isinstance(logger, WandbLogger):
        return WandbOutlet(logger)
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardOutlet(logger)
    return FolderOutlet(logger) if isinstance(logger, CSVLogger) else ScalarOutlet(logger)


def _wandb_cell(cell: Any) -> Any:
    if not isinstance(cell, np.ndarray):
        return cell
    import wandb

    return wandb.Image(Image.fromarray(cell))


def is_remote(logger: TensorBoardLogger | CSVLogger) -> bool:
    """Whether a logger's folder is an address such as "s3://bucket/logs", where no pictures and tables are saved."""
    return "://" in str(logger.log_dir)


def _log_scalars(logger: Any, shown: Shown, step: int) -> None:
    if shown.scalars:  # otherwise CSVLogger writes an empty row
        logger.log_metrics(shown.scalars, step)


def _folder(logger: Any, shown: Shown, step: int) -> Path:
    folder = Path(logger.log_dir) / "episodes" / shown.section.removesuffix("_episodes") / f"step_{step}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _save_tables(shown: Shown, folder: Path) -> None:
    for name, table in shown.tables.items():
        plain = {column: cells for column, cells in table.columns.items() if not _holds_pictures(cells)}
        pl.DataFrame(plain, strict=False).write_csv(folder / f"{name}.csv")


def _holds_pictures(cells: list[Any]) -> bool:
    return any(isinstance(cell, np.ndarray) for cell in cells)
