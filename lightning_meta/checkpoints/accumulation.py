"""Gradients that were being accumulated when a checkpoint was saved; Lightning does not save them."""

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor, nn

from lightning_meta.checkpoints.content import shortened


def accumulated_gradients(trainer: L.Trainer | None, module: nn.Module) -> dict[str, Any] | None:
    """Return the gradients that `restore_gradients` needs, or why they are lost; None: none are being accumulated."""
    if trainer is None or not (trainer.training or trainer.validating):
        return None
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    if progress.current.ready % trainer.accumulate_grad_batches == 0:
        return None
    if trainer.world_size > 1:
        return {"lost": f"by {trainer.world_size} processes, each of which has its own"}
    if progress.current.ready != progress.current.processed:
        return {"lost": "inside a training step"}
    return {"gradients": {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}}


def check_gradients(saved: Mapping[str, Any] | None, module: nn.Module) -> None:
    """Raise a ValueError if accumulated gradients were lost or do not fit the module."""
    if saved is None:
        return
    if "lost" in saved:
        raise ValueError(
            f"the checkpoint was saved while gradients were being accumulated {shortened(saved['lost'])}, and a run "
            "cannot resume from there: resume from a checkpoint that was saved after an optimizer step"
        )
    gradients, shapes = saved.get("gradients"), {name: p.shape for name, p in module.named_parameters()}
    if not isinstance(gradients, dict) or any(
        not isinstance(g, Tensor) or g.shape != shapes.get(name) for name, g in gradients.items()
    ):
        raise ValueError("the checkpoint's meta_learner_gradients are no tensors of the parameters' names and shapes")


def restore_gradients(saved: Mapping[str, Any] | None, module: nn.Module) -> None:
    """Give the parameters the gradients that had been accumulated."""
    if saved is not None:
        for name, p in module.named_parameters():
            if name in saved["gradients"]:
                p.grad = saved["gradients"][name].to(p)
