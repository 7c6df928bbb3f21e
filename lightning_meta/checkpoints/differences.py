"""What tells a checkpoint's training from a learner and a data module made otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import lightning as L
from torch import Tensor, nn

from lightning_meta.checkpoints.hyperparameters import constructor_parameters
from lightning_meta.checkpoints.object_text import TRAINING_ALONE, class_path, describe_the_same, known_class

Differences = dict[str, tuple[Any, Any]]
"""By the argument's name its value in the training and its value now."""

_ANY = ("_class_path", "_instantiator")  # of Lightning's command line; the class is compared by itself
_EVALUATION = "eval_"
_LEARNERS = {
    *(*TRAINING_ALONE, "lr_scheduler_interval", "checkpoint_inner_loop"),
    *("task_chunk_size", "compile", "log_step_metrics"),
}
_DATA = {
    *("root", "file", "cache_dir", "download", "query_shots", "seed"),
    *("tasks_per_batch", "train_tasks", "val_tasks", "test_tasks", "num_workers", "pin_memory"),
}
_DEFAULT_LOSS = {"class_path": class_path(nn.CrossEntropyLoss)}  # what ``loss_fn=None`` stands for
_UNKNOWN = object()


def learner_differences(checkpoint: Mapping[str, Any], learner: L.LightningModule) -> Differences:
    """Return the learner's arguments that were others in a checkpoint's training.

    Arguments of evaluation alone (``eval_inner_steps``, ``log_step_metrics``) and of how training runs (``optimizer``,
    ``compile``) are left out; so are those of which the checkpoint or the learner does not know the value, and those of
    ``meta_learner_arguments``, which ``on_load_checkpoint`` compares.
    """
    apart = {*_LEARNERS, *checkpoint["meta_learner_arguments"], *checkpoint.get("meta_learner_left_out", ())}
    trained = checkpoint.get(learner.CHECKPOINT_HYPER_PARAMS_KEY, {})
    return _differences(trained, learner.hparams, type(learner), apart)


def data_differences(checkpoint: Mapping[str, Any], data: L.LightningDataModule) -> Differences:
    """Return the data module's arguments that were others in a checkpoint's training, and its class as "class".

    Places of files, numbers of tasks and of queries, and the seed are left out: they change which tasks are seen, not
    their kind.
    """
    trained, own = checkpoint.get(data.CHECKPOINT_HYPER_PARAMS_KEY, {}), class_path(type(data))
    by = trained.get("_class_path")
    if isinstance(by, str) and _class_named(by) != own and not own.endswith(f".{by.rpartition('.')[2]}"):
        return {"class": (by, own)}
    return _differences(trained, data.hparams, type(data), _DATA) if trained and data.hparams else {}


def parameter_differences(trained: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return what keeps parameters and buffers of a training from being loaded, in sentences without an end."""
    found = [f"the checkpoint lacks {name}" for name in own if name not in trained]
    found += [f"the checkpoint has {name}, which the learner does not have" for name in trained if name not in own]
    return found + [
        f"{name} has the shape {list(trained[name].shape)} in the checkpoint and {list(value.shape)} in the learner"
        for name, value in own.items()
        if name in trained and trained[name].shape != value.shape
    ]


def _differences(trained: Mapping[str, Any], own: Mapping[str, Any], cls: type, apart: set[str]) -> Differences:
    found: Differences = {}
    for name in sorted({*trained, *own} - {*_ANY, *apart}):
        if name.startswith(_EVALUATION):
            continue
        one, other = (values[name] if name in values else _default(cls, name) for values in (trained, own))
        if one is not _UNKNOWN and other is not _UNKNOWN:
            found |= dict(_between(name, _normal(one, name), _normal(other, name)))
    return found


def _default(cls: type, name: str) -> Any:
    for owner in (base for base in cls.__mro__ if "__init__" in vars(base)):
        for parameter in constructor_parameters(owner):
            if parameter.name == name:
                return _UNKNOWN if parameter.default is parameter.empty else parameter.default
    return _UNKNOWN


def _between(name: str, trained: Any, own: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Name the values that differ, each by the path of its argument."""
    if trained == own or describe_the_same(trained, own, name.rpartition(".")[2]):
        return
    if not (isinstance(trained, dict) and isinstance(own, dict)):
        yield name, (trained, own)
    elif trained.get("class_path") != own.get("class_path"):
        yield name, (trained.get("class_path", trained), own.get("class_path", own))
    else:
        for key in sorted(trained.keys() | own.keys()):
            inner = name if key == "init_args" else f"{name}.{key}"
            yield from _between(inner, trained.get(key), own.get(key))


def _normal(text: Any, name: str = "") -> Any:
    """Return a stored value in the one form of all that mean the same: full class paths, all arguments, lists."""
    if text is None and name == "loss_fn":
        text = _DEFAULT_LOSS
    if isinstance(text, Mapping) and isinstance(text.get("class_path"), str):
        cls, given = known_class(text["class_path"]), dict(text.get("init_args") or {})
        defaults: dict[str, Any] = {}
        if cls is not None:
            defaults = {p.name: p.default for p in constructor_parameters(cls) if p.default is not p.empty}
        rest = {key: _normal(value) for key, value in text.items() if key not in ("class_path", "init_args")}
        arguments = {key: _normal(value) for key, value in {**defaults, **given}.items()}
        return {"class_path": _class_named(text["class_path"]), "init_args": arguments, **rest}
    if isinstance(text, Mapping):
        return {key: _normal(value) for key, value in text.items()}
    if isinstance(text, list | tuple):
        return list(map(_normal, text))
    return str(text) if isinstance(text, PurePath) else text


def _class_named(path: str) -> str:
    known = known_class(path)
    return path if known is None else class_path(known)
