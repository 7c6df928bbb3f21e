"""Saves learners, and changes what was saved."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import nn

from lightning_meta import MAML

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def save(learner, folder, name="learner.ckpt"):
    trainer = L.Trainer(max_steps=0, accelerator="cpu", default_root_dir=folder, **QUIET)
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(folder / name)
    return folder / name


def changed(path, **entries):
    """A copy of a checkpoint with other hyper-parameters, and others of its own entries where named ``__so``."""
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"] |= {name: value for name, value in entries.items() if not name.startswith("__")}
    content |= {name.removeprefix("__"): value for name, value in entries.items() if name.startswith("__")}
    torch.save(content, path.with_name("changed.ckpt"))
    return path.with_name("changed.ckpt")


def outputs(learner, features=8):
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(6, features, generator=generator), torch.arange(3).repeat(2)
    return learner.eval().adapt(x, y)(x)


class Own(nn.Linear):
    pass


class HeadOnly(MAML):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, adapt="head", **kwargs)


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def deep(levels):
    value = ["a"]
    for _ in range(levels):
        value = [value]
    return value
