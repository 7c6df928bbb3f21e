"""The last line of a command, which says where its results are."""

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only


def log_folder(trainer: Any) -> Path | None:
    """Return the folder that this process's logger writes into; None: there is none.

    Not Lightning's ``trainer.log_dir``, for which processes wait for each other: after Ctrl-C others may be gone.
    """
    if isinstance(trainer.logger, WandbLogger):
        files = getattr(trainer.logger.experiment, "dir", None)
        return Path(files).parent if isinstance(files, str) else None
    folder = getattr(trainer.logger, "log_dir", None)
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


def has_run_folder(trainer: Any) -> bool:
    """Whether the logger makes a folder for each run, so that nothing of the user is there."""
    return isinstance(trainer.logger, WandbLogger) or isinstance(getattr(trainer.logger, "log_dir", None), str)


@rank_zero_only
def say_saved(**places: Any) -> None:
    """Print in one line those of the files and folders that exist, such as ``checkpoint=path``."""
    found = [f"{name} {Path(path)}" for name, path in places.items() if path and Path(path).exists()]
    print(f"Saved: {', '.join(found)}" if found else "Nothing was saved.", flush=True)


def say_training_saved(trainer: Any, configuration: Path | None, interrupted: bool) -> None:
    """Print where checkpoint, configuration and logs of a training are; after Ctrl-C how to go on."""
    callback = trainer.checkpoint_callback
    best, last = getattr(callback, "best_model_path", ""), getattr(callback, "last_model_path", "")
    also_last = {"last checkpoint": last} if last != best else {}
    expected = getattr(callback, "save_top_k", 0) != 0 and not trainer.fast_dev_run
    if expected and not (best or last) and trainer.is_global_zero:
        print(
            "No checkpoint was saved, as the training ended before its first validation: lower "
            "--trainer.check_val_every_n_epoch, or train for more epochs.",
            flush=True,
        )
    say_saved(checkpoint=best, **also_last, configuration=configuration, logs=log_folder(trainer))
    kept = [Path(path) for path in (best, last, *getattr(callback, "best_k_models", ())) if path]
    kept = [path for path in kept if path.exists()]
    if interrupted and kept and trainer.is_global_zero:
        newest = max(kept, key=lambda path: path.stat().st_mtime_ns)
        print(f"Resume with the same command and --ckpt_path {newest}", flush=True)
