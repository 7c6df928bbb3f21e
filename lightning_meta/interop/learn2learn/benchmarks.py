"""learn2learn's benchmarks over our own data modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from lightning_meta.data import (
    CIFARFSDataModule,
    FC100DataModule,
    MiniImagenetDataModule,
    NWayDataModule,
    OmniglotDataModule,
    TieredImagenetDataModule,
)

Benchmark = Literal["omniglot", "mini-imagenet", "tiered-imagenet", "cifarfs", "fc100"]

_MODULES: dict[Benchmark, Any] = {
    "omniglot": OmniglotDataModule,
    "mini-imagenet": MiniImagenetDataModule,
    "tiered-imagenet": TieredImagenetDataModule,
    "cifarfs": CIFARFSDataModule,
    "fc100": FC100DataModule,
}
# Where learn2learn keeps files that we read in a root that data sets share; its others are pickled.
_FOLDERS: dict[Benchmark, str] = {"omniglot": "omniglot-py", "cifarfs": "cifarfs"}


def get_tasksets(
    name: Benchmark,
    train_ways: int = 5,
    train_samples: int = 10,
    test_ways: int = 5,
    test_samples: int = 10,
    num_tasks: int = -1,
    *,
    root: str | Path = "~/data",
    device: None = None,
    shots: int = 1,
    **options: Any,
) -> NWayDataModule:
    """Return a data module of a benchmark, chosen by the name and arguments of learn2learn's function.

    The files must be there: nothing is downloaded unless ``download=True`` is passed for Omniglot. learn2learn itself
    is not needed. Splits are those of the data module, which are disjoint.

    Args:
        name: The benchmark.
        train_ways: Classes in a training task.
        train_samples: Examples per class in a training task, support and query sets together.
        test_ways: Classes in a validation or test task; must equal ``train_ways``.
        test_samples: Examples per class in a validation or test task.
        num_tasks: Must be -1, as tasks are drawn anew in each epoch; options give the number of tasks of an epoch.
        root: The folder with the files, or with learn2learn's folder of them.
        device: Must be None, as the trainer moves batches.
        shots: Support examples per class.
        **options: As in the data module, such as ``train_tasks``.

    Raises:
        ValueError: If an argument is out of its range.
        FileNotFoundError: If the files are not there, when tasks are made.

    Example:
        >>> data = get_tasksets("omniglot", train_samples=6, test_samples=16, root="data")
        >>> type(data).__name__, data.query_shots, data.eval_query_shots
        ('OmniglotDataModule', 5, 15)
    """
    if name not in _MODULES:
        raise ValueError(f"name={name!r} is not one of {list(get_args(Benchmark))}")
    if num_tasks != -1:
        raise ValueError(
            f"num_tasks={num_tasks} has no counterpart: pass train_tasks, val_tasks and test_tasks, the tasks of an "
            "epoch, and root by name"
        )
    if device is not None:
        raise ValueError(f"device={device!r} has no counterpart: leave it out, and pass accelerator to the Trainer")
    if train_ways != test_ways:
        raise ValueError(
            f"train_ways={train_ways} and test_ways={test_ways} differ: make a data module for each number of ways"
        )
    for argument, samples in (("train_samples", train_samples), ("test_samples", test_samples)):
        if samples <= shots:
            raise ValueError(f"{argument}={samples} leaves no queries beside shots={shots}: raise {argument}")
    root = Path(root).expanduser()
    own = root / _FOLDERS.get(name, "")
    return _MODULES[name](
        str(own if own.is_dir() else root),
        ways=train_ways,
        shots=shots,
        query_shots=train_samples - shots,
        eval_query_shots=test_samples - shots,
        **options,
    )
