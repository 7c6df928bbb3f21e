"""What learners can do and what they log, found by running each of them on tasks of a few numbers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_meta import Episode, EpisodicDataModule, GradientLearner, SinusoidDataModule, TaskLearner, algorithms
from lightning_meta.algorithms.processes.neural_process import NeuralProcess
from lightning_meta.algorithms.transfer.transfer_learner import TransferLearner

WAYS = 3


class Variant(NamedTuple):
    """A learner with the arguments that the tables show."""

    name: str
    cls: type[TaskLearner]
    options: tuple[tuple[str, Any], ...] = ()

    def learner(self, model: nn.Module, loss_fn: nn.Module, **options: Any) -> Any:
        """Make it."""
        return self.cls(model, loss_fn, **dict(self.options), **options)


def _needed(cls: type[TaskLearner]) -> tuple[tuple[str, Any], ...]:
    """The arguments without which a learner cannot run here; a center would be that of a data module's examples."""
    classes = (("num_train_classes", WAYS),) if issubclass(cls, TransferLearner) else ()
    return (*classes, ("normalization", "l2n")) if issubclass(cls, algorithms.SimpleShot) else classes


VARIANTS = [Variant(name, cls, _needed(cls)) for name in algorithms.__all__ for cls in [getattr(algorithms, name)]]
VARIANTS.append(Variant("MAML(first_order=True)", algorithms.MAML, (("first_order", True),)))
VARIANTS.sort(key=lambda variant: variant.name.lower())


class HalfSquare(nn.Module):
    """x² / 2, with or without its second derivative; value and first derivative are the same."""

    def __init__(self, has_second: bool) -> None:
        super().__init__()
        self.has_second = has_second

    def forward(self, x: Tensor) -> Tensor:
        """Return x² / 2."""
        slope = x if self.has_second else x.detach()
        return 0.5 * x.square() if self.has_second else slope * x - 0.5 * slope.square()


def model(outputs: int) -> nn.Module:
    """A model that ends in a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, outputs))


def regression_batch() -> Episode:
    """Two tasks with real targets."""
    torch.manual_seed(1)
    return Episode(*(torch.randn(2, 6, 1) for _ in range(4)))


def class_batch(ways: int = WAYS) -> Episode:
    """Two tasks with class labels."""
    torch.manual_seed(1)
    labels = torch.arange(2 * ways).remainder(ways).expand(2, -1)
    return Episode(torch.randn(2, 2 * ways, 1), labels, torch.randn(2, 2 * ways, 1), labels)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and no log of the trainer's choices."""
    log, random = logging.getLogger("lightning.pytorch"), torch.random.fork_rng(devices=[])
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), random:
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _succeeds(action: Callable[[], Any], refusal: str) -> bool:
    """Return whether the action is not refused; an error without the words of the refusal is a bug, and goes on."""
    try:
        with _quiet():
            action()
    except (TypeError, ValueError) as error:
        if refusal not in str(error):
            raise
        return False
    return True


# ---- Questions that a cell of the tables answers. -----------------------------------------------------------


@cache
def takes_real_targets(variant: Variant) -> bool:
    """Whether it learns regressions."""
    return _succeeds(
        lambda: variant.learner(model(1), nn.MSELoss()).training_step(regression_batch(), 0), "needs class labels"
    )


@cache
def takes_classes(variant: Variant) -> bool:
    """Whether it learns classifications."""
    return _succeeds(
        lambda: variant.learner(model(WAYS), nn.CrossEntropyLoss()).training_step(class_batch(), 0),
        "needs real targets",
    )


def _any_learner(variant: Variant, **options: Any) -> tuple[Any, Episode]:
    """Make it for classes, or for real targets if it takes no others, and a batch."""
    if takes_classes(variant):
        return variant.learner(model(WAYS), nn.CrossEntropyLoss(), **options), class_batch()
    return variant.learner(model(1), nn.MSELoss(), **options), regression_batch()


@cache
def takes_any_ways(variant: Variant) -> bool:
    """Whether one learner adapts to more classes than its model has outputs."""
    task = class_batch(WAYS + 2).select(0)
    return takes_classes(variant) and _succeeds(
        lambda: variant.learner(model(WAYS), nn.CrossEntropyLoss()).adapt(task.support_x, task.support_y),
        "give the model as many outputs",
    )


@cache
def keeps_padding(variant: Variant) -> bool:
    """Whether tasks of unequal sizes are computed together, with masks."""
    return not _any_learner(variant)[0].requires_unpadded


def takes_inner_steps(variant: Variant) -> bool:
    """Whether it has an inner loop of gradient steps."""
    return issubclass(variant.cls, GradientLearner)


def _takes_argument(variant: Variant, **argument: Any) -> bool:
    (name,) = argument
    refusal = f"keyword argument '{name}'"  # Python's words, for one that is not known and for one that is fixed
    return _succeeds(lambda: _any_learner(variant, **argument), refusal)


@cache
def takes_update_rule(variant: Variant) -> bool:
    """Whether the inner loop's update rule is an argument."""
    return _takes_argument(variant, inner_optimizer="adam")


@cache
def takes_part(variant: Variant) -> bool:
    """Whether the parameters that adapt are an argument."""
    return _takes_argument(variant, adapt=["2.*"])


@cache
def is_first_order(variant: Variant) -> bool:
    """Whether the meta-gradient does not change with the model's second derivatives."""
    real = takes_real_targets(variant)
    batch, outputs = (regression_batch(), 1) if real else (class_batch(), WAYS)
    gradients = []
    for has_second in (True, False):
        body, square = model(outputs), HalfSquare(has_second)
        # What reads or solves for the head needs it as the last layer; then the body's second derivatives could matter.
        has_head = issubclass(variant.cls, algorithms.AmortizedMAML | algorithms.COMLN | NeuralProcess)
        layers = [body[0], square, body[2]] if has_head else [*body, square]
        learner = variant.learner(nn.Sequential(*layers), nn.MSELoss() if real else nn.CrossEntropyLoss())
        with _quiet():
            torch.manual_seed(2)
            learner.training_step(batch, 0).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in learner.model.parameters()]))
    return torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


@cache
def has_weights(variant: Variant) -> bool:
    """Whether an adapted task is the model with other weights."""
    learner, batch = _any_learner(variant)
    task = batch.select(0)
    return _succeeds(lambda: learner.adapt(task.support_x, task.support_y).state_dict(), "has no state_dict()")


@cache
def _prediction(variant: Variant, real: bool) -> Any:
    task = (regression_batch() if real else class_batch()).select(0)
    learner = variant.learner(model(1 if real else WAYS), nn.MSELoss() if real else nn.CrossEntropyLoss())
    with _quiet():
        return learner.adapt(task.support_x, task.support_y).predict(task.query_x)


def is_uncertain_of_classes(variant: Variant) -> bool:
    """Whether predictions of classes have an epistemic part."""
    return takes_classes(variant) and _prediction(variant, real=False).epistemic is not None


def has_noise_model(variant: Variant) -> bool:
    """Whether regressions have a noise model, and so intervals of their own."""
    return takes_real_targets(variant) and _prediction(variant, real=True).aleatoric is not None


def is_uncertain_of_targets(variant: Variant) -> bool:
    """Whether regressions have an epistemic part."""
    return takes_real_targets(variant) and _prediction(variant, real=True).epistemic is not None


TABLES: dict[str, dict[str, Callable[[Variant], bool]]] = {
    "tasks": {
        "regression": takes_real_targets,
        "classification": takes_classes,
        "any number of ways": takes_any_ways,
        "unequal sizes, padded": keeps_padding,
    },
    "adaptation": {
        "gradient steps": takes_inner_steps,
        "update rule": takes_update_rule,
        "part of the model": takes_part,
        "first order": is_first_order,
        "weights": has_weights,
    },
    "uncertainty": {
        "classes: epistemic": is_uncertain_of_classes,
        "regression: noise": has_noise_model,
        "regression: epistemic": is_uncertain_of_targets,
    },
}


# ---- Logs. --------------------------------------------------------------------------------------------------


def _data(real: bool, joint: bool) -> Any:
    sizes = {"tasks_per_batch": 2, "train_tasks": 4, "val_tasks": 2, "test_tasks": 2}
    if real:
        return SinusoidDataModule(shots=4, **sizes)
    labels = torch.arange(WAYS).repeat_interleave(6)
    examples = TensorDataset(torch.randn(len(labels), 1), labels)
    size = 9 if joint else None
    return EpisodicDataModule(
        examples, examples, examples, ways=WAYS, shots=2, query_shots=3, joint_batch_size=size, **sizes
    )


@cache
def logged(variant: Variant, real: bool) -> tuple[str, ...]:
    """The names that two training steps and a validation log, without those of intervals."""
    with _quiet():
        torch.manual_seed(0)
        learner = variant.learner(model(1 if real else WAYS), nn.MSELoss() if real else nn.CrossEntropyLoss())
        trainer = L.Trainer(
            **{"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "num_sanity_val_steps": 0},
            **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
            enable_model_summary=False,
        )
        trainer.fit(learner, _data(real, issubclass(variant.cls, TransferLearner)))
    return tuple(name for name in sorted(trainer.callback_metrics) if not name.endswith("_ci95"))
