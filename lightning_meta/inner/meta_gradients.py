"""Meta-gradients of an inner loop: unrolled, checkpointed, first-order, implicit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_meta.arguments import check_count, check_nonnegative
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.inner.checkpoint import checkpoint
from lightning_meta.inner.solvers.conjugate_gradient import Solution, conjugate_gradient
from lightning_meta.inner.solvers.proximal import ProximalProblem
from lightning_meta.inner.vectors import Vector

# (meta-parameters, support, point, first step, count) to the points and losses of these inner steps.
Steps = Callable[[Any, Any, Any, int, int], Iterator[tuple[Any, Tensor]]]


class MetaGradient(ABC):
    """How the meta-gradient is computed through inner steps; a part of it may override `at_epoch`."""

    recomputes = False
    """Whether inner steps are recomputed for the derivative, which captured steps do not support."""

    def at_epoch(self, epoch: int) -> MetaGradient:
        """Return the meta-gradient of an epoch, counted from 0."""
        return self

    @abstractmethod
    def start_of_step(self, values: Any) -> Any:
        """Return the pytree of tensors at which an inner step computes its gradient."""


@dataclass(frozen=True)
class Unrolled(MetaGradient):
    """The exact, second-order meta-gradient, by differentiation through all inner steps."""

    def start_of_step(self, values: Any) -> Any:
        """Return the values themselves."""
        return values


@dataclass(frozen=True)
class Checkpointed(MetaGradient):
    """The same meta-gradient as `Unrolled` with about 2 √K steps in memory in place of K.

    It keeps every √K-th step and recomputes the others, which takes 25 % (images) to 80 % (tiny models) more time.
    """

    recomputes = True

    def start_of_step(self, values: Any) -> Any:
        """Return the values themselves."""
        return values

    def run(self, steps: Steps, meta: Any, support: Any, start: Any, count: int) -> tuple[Any, Tensor]:
        """Return the point after ``count`` steps and the support losses before each, ``[count]``."""
        length = math.isqrt(count - 1) + 1
        point, losses = start, []
        for first in range(0, count, length):
            number = min(length, count - first)

            def piece(meta: Any, support: Any, point: Any, first: int = first, number: int = number) -> Any:
                points, piece_losses = zip(*steps(meta, support, point, first, number), strict=True)
                return points[-1], torch.stack(piece_losses)

            point, piece_losses = checkpoint(piece, dict(meta), support, point)
            losses.append(piece_losses)
        return point, torch.cat(losses)


@dataclass(frozen=True)
class FirstOrder(MetaGradient):
    """The first-order meta-gradient, without second derivatives (FOMAML: Finn et al., 2017, section 5.2).

    Attributes:
        epochs: The number of first-order epochs (derivative-order annealing: Antoniou et al., 2019); None: all.
        then: The meta-gradient of later epochs.
    """

    epochs: int | None = None
    then: MetaGradient = field(default_factory=Unrolled)

    def __post_init__(self) -> None:
        """Check the number of epochs."""
        if self.epochs is not None:
            check_count("epochs", self.epochs)

    @property
    def recomputes(self) -> bool:  # type: ignore[override]
        """Whether later epochs recompute steps."""
        return self.epochs is not None and self.then.recomputes

    def at_epoch(self, epoch: int) -> MetaGradient:
        """Return the meta-gradient of an epoch, counted from 0."""
        if self.epochs is None:
            return self
        return _FIRST_ORDER if epoch < self.epochs else self.then.at_epoch(epoch)

    def start_of_step(self, values: Any) -> Any:
        """Return the values detached, so that the gradient builds no second-order graph."""
        return map_leaves(lambda value: value.detach(), values)


_FIRST_ORDER = FirstOrder()  # made once, because `torch.compile` cannot trace its constructor


def meta_gradient_of(
    given: MetaGradient | None, first_order: bool, first_order_epochs: int, checkpoint_inner_loop: bool
) -> MetaGradient:
    """Return the meta-gradient that `MAML`'s arguments choose.

    Raises:
        ValueError: If they contradict each other.
        TypeError: If ``given`` is not a `MetaGradient`.
    """
    check_count("first_order_epochs", first_order_epochs, least=0)
    if given is not None and not isinstance(given, MetaGradient):
        raise TypeError(f"meta_gradient={given!r} must be Unrolled(), Checkpointed() or FirstOrder()")
    if given is not None and (first_order or first_order_epochs or checkpoint_inner_loop):
        raise ValueError(
            f"meta_gradient={given!r} replaces first_order, first_order_epochs and checkpoint_inner_loop: leave these "
            "out"
        )
    if first_order and checkpoint_inner_loop:
        raise ValueError(
            "checkpoint_inner_loop=True saves no memory with first_order=True, which differentiates no inner step: "
            "leave one of them out"
        )
    if given is not None or first_order:
        return FirstOrder() if given is None else given
    exact = Checkpointed() if checkpoint_inner_loop else Unrolled()
    return FirstOrder(first_order_epochs, then=exact) if first_order_epochs else exact


@dataclass(frozen=True)
class Implicit:
    """The implicit meta-gradient at the solution of a proximal problem (Rajeswaran et al., 2019, lemma 1).

    Attributes:
        cg_steps: Conjugate-gradient steps for the adjoint.
        cg_damping: Added to the diagonal of the adjoint's system; 0 is the true gradient.
        cg_warm_start: Whether to start at ``Λ⁻¹ ∇L_Q`` in place of zero.
    """

    cg_steps: int = 5
    cg_damping: float = 0.0
    cg_warm_start: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_count("cg_steps", self.cg_steps)
        check_nonnegative("cg_damping", self.cg_damping)

    def adjoint(self, problem: ProximalProblem, point: Vector, slope: Vector) -> tuple[Solution, Vector]:
        """Solve ``(H_S(φ) + Λ + damping I) u = ∇L_Q`` for u by conjugate gradients.

        Args:
            problem: The task's inner problem.
            point: φ, where its solver stopped.
            slope: ``∇L_Q(φ)``.

        Returns:
            The solution, and the gradient of the problem's objective at φ.
        """
        stationarity, _, apply = problem.curvature(point, self.cg_damping)
        first_order = {name: value / problem.strength[name] for name, value in slope.items()}
        start = first_order if self.cg_warm_start else None
        return conjugate_gradient(apply, slope, self.cg_steps, fallback=first_order, start=start), stationarity
