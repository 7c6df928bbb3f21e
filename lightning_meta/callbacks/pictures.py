"""Saving of pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_info

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(trainer: L.Trainer, draw: Callable[[], "Figure"], name: str) -> None:
    """Save a figure as ``name.png`` beside the run's logs; with Weights & Biases, log it to the run too.

    All processes must call this; the first one draws.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)  # the first process sends its folder to the others
    if not trainer.is_global_zero:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    draw().savefig(path, dpi=110)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"test/{name}", [str(path)])
    rank_zero_info(f"{name} is saved in {path}")
