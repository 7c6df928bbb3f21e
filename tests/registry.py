"""All learners, one line each: tests that are for every algorithm take `LEARNERS`, or the part of it they concern.

A shared test of over 0.3 s a learner takes `every(costly=True)`, `cases` or `named_cases`: it is slow for learners
whose paths through the library others have too. A test of over 2 s a learner names the few that `make test` has.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import (
    ABML,
    ANIL,
    BOIL,
    CAVIA,
    CNP,
    COMLN,
    DKT,
    MAML,
    MLP,
    PACOH,
    PLATIPUS,
    R2D2,
    TNP,
    VERSA,
    AmortizedMAML,
    AttentiveNP,
    Baseline,
    BaselinePlusPlus,
    BayesianMAML,
    Episode,
    EpisodicDataModule,
    GradientLearner,
    ImplicitMAML,
    MatchingNet,
    MetaCurvature,
    MetaOptNet,
    MetaSGD,
    PosteriorLearner,
    ProtoMAML,
    ProtoNet,
    RelationNet,
    Reptile,
    SimpleShot,
    SinusoidDataModule,
    TaskLearner,
    collate_episodes,
)
from lightning_meta.algorithms.processes.neural_process import NeuralProcess
from lightning_meta.algorithms.transfer.transfer_learner import TransferLearner

WAYS = 3
CLASSES, EXAMPLES_EACH = 12, 40


@dataclass(frozen=True)
class Entry:
    """What tests need to know of a learner.

    Attributes:
        name: Its name in tests.
        cls: Its class.
        options: Arguments that make it what its name says, or keep it quick.
        classes_only: Whether it takes class labels alone; otherwise tests give it real numbers.
        numbers_only: Whether it takes real numbers alone.
        draws: Whether a training step draws random numbers.
        certain: Arguments with which its draws are too small to matter.
        traceable: Whether `torch.compile` can trace its step under guards.
        costly_tests_are_slow: Whether shared tests that are costly are in `make test-slow` for it, not in `make test`.
    """

    name: str
    cls: type[TaskLearner]
    options: Mapping[str, Any] = field(default_factory=dict)
    classes_only: bool = False
    numbers_only: bool = False
    draws: bool = False
    certain: Mapping[str, Any] = field(default_factory=dict)
    traceable: bool = True
    costly_tests_are_slow: bool = False

    @property
    def takes_steps(self) -> bool:
        """Whether it takes inner steps, and so their arguments."""
        return issubclass(self.cls, GradientLearner)

    @property
    def is_bayesian(self) -> bool:
        """Whether it adapts a distribution, from which it draws."""
        return issubclass(self.cls, PosteriorLearner | AttentiveNP)

    @property
    def is_transfer(self) -> bool:
        """Whether it trains on all training classes at once, without tasks."""
        return issubclass(self.cls, TransferLearner)

    @property
    def has_noise(self) -> bool:
        """Whether its predictions of real numbers have a variance."""
        return issubclass(self.cls, PosteriorLearner | NeuralProcess)

    @property
    def outputs(self) -> int:
        """Outputs of its model."""
        return WAYS if self.classes_only else 1

    @property
    def metric(self) -> str:
        """The name of its metric in logs."""
        return "acc" if self.classes_only else "mse"

    def loss_fn(self) -> nn.Module:
        """Its loss."""
        return nn.CrossEntropyLoss() if self.classes_only else nn.MSELoss()

    def learner(self, model: nn.Module | None = None, loss_fn: Any = None, **options: Any) -> Any:
        """Make a small learner; of the options, those of inner steps are for learners that take them."""
        if not self.takes_steps:
            options = {name: value for name, value in options.items() if not name.startswith(("inner_", "eval_inner"))}
        model = MLP(1, self.outputs, hidden=[6]) if model is None else model
        return self.cls(model, self.loss_fn() if loss_fn is None else loss_fn, **{**self.options, **options})

    def task(self, support: int = 6, query: int = 5, features: int = 1) -> Episode:
        """Draw one task; its classes are all in its support set, if that has as many examples."""

        def targets(size: int) -> torch.Tensor:
            return torch.arange(size) % WAYS if self.classes_only else torch.randn(size, 1)

        x, query_x = torch.randn(support, features), torch.randn(query, features)
        return Episode(x, targets(support), query_x, targets(query))

    def batch(self, tasks: int = 4, **sizes: int) -> Episode:
        """Draw a batch of tasks of the same size."""
        return collate_episodes([self.task(**sizes) for _ in range(tasks)])

    def data(self, **options: Any) -> SinusoidDataModule | EpisodicDataModule:
        """Make a data module of small tasks."""
        if not self.classes_only:
            return SinusoidDataModule(**{"shots": 4, **options})
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(CLASSES).repeat(EXAMPLES_EACH)
        x = torch.randn(len(labels), 1, generator=generator) + labels[:, None]
        examples = train = TensorDataset(x, labels)
        options = {"ways": WAYS, "shots": 2, "query_shots": 3, **options}
        if self.is_transfer:  # as many training classes as a task has ways, and as many batches as others have
            size, steps = 120, options.get("train_tasks", 1_600) // options.get("tasks_per_batch", 16)
            train = TensorDataset(x[:size], labels[:size] % WAYS)
            options["joint_batch_size"] = -(-size // steps)
        return EpisodicDataModule(train, examples, examples, **options)


LEARNERS = [
    Entry("MAML", MAML),
    # What detaches a tree of tensors cannot be traced.
    Entry("FOMAML", MAML, {"first_order": True}, costly_tests_are_slow=True),
    Entry("ANIL", ANIL, costly_tests_are_slow=True),
    Entry("BOIL", BOIL, costly_tests_are_slow=True),
    Entry("MetaSGD", MetaSGD, costly_tests_are_slow=True),
    Entry("MetaCurvature", MetaCurvature, costly_tests_are_slow=True),
    Entry("CAVIA", CAVIA, {"num_context_parameters": 3}, costly_tests_are_slow=True),
    Entry("COMLN", COMLN, {"solver_steps": 4}, costly_tests_are_slow=True),
    Entry("Reptile", Reptile),
    Entry("ImplicitMAML", ImplicitMAML, {"inner_steps": 2}),
    Entry("BayesianMAML", BayesianMAML, {"num_particles": 2}),
    Entry(
        "ABML",
        ABML,
        {"inner_steps": 1, "normalize_steps": True},
        draws=True,
        certain={"initial_log_std": -15.0, "kl_weight": 1e-15},
    ),
    # A hook on the head cannot be traced.
    Entry("AmortizedMAML", AmortizedMAML, draws=True, certain={"initial_log_std": -40.0}, traceable=False),
    Entry("MetaOptNet", MetaOptNet, {"solver_steps": 8}, classes_only=True, costly_tests_are_slow=True),
    Entry("ProtoMAML", ProtoMAML, classes_only=True),
    Entry("ProtoNet", ProtoNet, classes_only=True),
    Entry(
        "MatchingNet", MatchingNet, {"scale": 5.0, "learn_scale": True}, classes_only=True, costly_tests_are_slow=True
    ),
    Entry("RelationNet", RelationNet, classes_only=True, costly_tests_are_slow=True),
    # Tests' tasks serve as batches of all training classes: they have as many.
    Entry(
        "Baseline",
        Baseline,
        {"num_train_classes": WAYS, "inner_steps": 2},
        classes_only=True,
        costly_tests_are_slow=True,
    ),
    Entry(
        "BaselinePlusPlus",
        BaselinePlusPlus,
        {"num_train_classes": WAYS, "inner_steps": 2},
        classes_only=True,
        costly_tests_are_slow=True,
    ),
    # Its center is measured on a data module's examples, which most tests lack.
    Entry("SimpleShot", SimpleShot, {"num_train_classes": WAYS, "normalization": "l2n"}, classes_only=True),
    Entry("R2D2", R2D2, costly_tests_are_slow=True),
    Entry(
        "PLATIPUS",
        PLATIPUS,
        {"eval_num_samples": 2},
        draws=True,
        certain={"initial_log_std": -40.0, "kl_weight": 1e-60},
        costly_tests_are_slow=True,
    ),
    Entry("DKT", DKT),
    Entry("PACOH", PACOH, {"num_particles": 2}, numbers_only=True, costly_tests_are_slow=True),
    Entry("DKT-classes", DKT, classes_only=True, costly_tests_are_slow=True),
    Entry(
        "VERSA", VERSA, classes_only=True, draws=True, certain={"initial_log_std": -40.0}, costly_tests_are_slow=True
    ),
    # As for AmortizedMAML, a hook on the head.
    Entry("CNP", CNP, {"hidden": 8, "layers": 1}, traceable=False, costly_tests_are_slow=True),
    Entry(
        "AttentiveNP",
        AttentiveNP,
        {"hidden": 8, "layers": 1, "heads": 2, "latents": 3},
        draws=True,
        certain={"max_latent_std": 1e-9, "kl_weight": 1e-25},
        traceable=False,
        costly_tests_are_slow=True,
    ),
    Entry(
        "TNP",
        TNP,
        {"hidden": 8, "layers": 2, "heads": 2, "embedding_layers": 1},
        traceable=False,
        costly_tests_are_slow=True,
    ),
]
BY_NAME = {entry.name: entry for entry in LEARNERS}


def cases(entries: Iterable[Entry], quick: Collection[str] | None = None) -> list[Any]:
    """Make parameters of a costly test of learners, slow ones of those whose costly tests are, or of all but some."""
    return [pytest.param(entry, id=entry.name, marks=_marks(entry.name, quick)) for entry in entries]


def named_cases(names: Iterable[str], quick: Collection[str] | None = None) -> list[Any]:
    """Make parameters of a costly test of names of learners; names that are not of `LEARNERS` are never slow."""
    return [pytest.param(name, id=name, marks=_marks(name, quick)) for name in names]


def is_slow(name: str) -> bool:
    """Whether costly tests of what has this name are slow."""
    return name in BY_NAME and BY_NAME[name].costly_tests_are_slow


def _marks(name: str, quick: Collection[str] | None) -> list[pytest.MarkDecorator]:
    slow = is_slow(name) if quick is None else name not in quick
    return [pytest.mark.slow] if slow else []


def every(
    condition: Callable[[Entry], bool] = lambda entry: True,
    costly: bool = False,
    quick: Collection[str] | None = None,
) -> pytest.MarkDecorator:
    """Parametrize a test by ``entry``, over all learners of which a condition holds.

    Args:
        condition: Tells whether a test concerns a learner.
        costly: Whether the test takes over about 0.3 s a learner. It is then slow for those flagged so.
        quick: The learners for which the test is not slow, where it takes over about 2 s a learner.
    """
    chosen = [entry for entry in LEARNERS if condition(entry)]
    made = cases(chosen, quick) if costly or quick is not None else chosen
    return pytest.mark.parametrize("entry", made, ids=lambda entry: entry.name)
