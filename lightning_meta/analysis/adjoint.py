"""How well implicit MAML's conjugate gradients solve for the meta-gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from lightning_meta.algorithms import ImplicitMAML
from lightning_meta.analysis.inner_problem import flattened
from lightning_meta.analysis.lanczos import lanczos, ritz
from lightning_meta.arguments import check_count
from lightning_meta.episodes import Episode, MetaParameters, TaskResult
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.inner.inner_loop import run_through
from lightning_meta.inner.solvers.conjugate_gradient import Iterate, conjugate_gradient, conjugate_gradient_iterates
from lightning_meta.inner.vectors import Vector, add, elementwise, norm
from lightning_meta.learners.evaluation import query_size

_SOLVED = 1e-8  # relative residual of the reference, in double precision


class AdjointErrors(NamedTuple):
    """How well iteration solves tasks' linear systems ``A u = b``, with ``A = H_S(φ) + Λ`` and ``b = ∇L_Q(φ)``.

    Attributes:
        errors: ``‖u_k − u‖ / ‖u‖`` after k = 1, 2, ... conjugate-gradient steps, as the learner takes them (with its
            damping and start), ``[tasks, steps]``; NaN for tasks that are not `solved`.
        own_steps: The learner's own number of steps.
        own_error: ``‖Λ (u_k − u)‖ / ‖Λ u‖``, the error of the meta-gradient after ``own_steps``, ``[tasks]``; NaN as
            above.
        own_residual: ``‖b − A u_k‖ / ‖b‖`` after ``own_steps``, ``[tasks]``.
        reference_residual: The same of the reference, ``[tasks]``; NaN where `smallest` is not positive, for which no
            reference is computed.
        largest: The largest eigenvalue of A, ``[tasks]``; Lanczos' estimate is never above it.
        smallest: The smallest eigenvalue of A, ``[tasks]``; Lanczos' estimate is never below it.
        negative_curvature: Whether the iteration of the reference, if there is one, ended at a direction of negative
            curvature, ``[tasks]``.
        stationarity: ``‖∇L_S(φ) + Λ (φ − θ)‖``, 0 at the solution φ* of the inner problem, ``[tasks]``.
        solver_bound: A bound on `own_error`, see `adjoint_errors`, ``[tasks]``; NaN unless `positive_definite`.
        inner_bound: A bound on the meta-gradient's relative error from ``φ ≠ φ*``, see `adjoint_errors`, ``[tasks]``;
            NaN unless `positive_definite`.
    """

    errors: Tensor
    own_steps: int
    own_error: Tensor
    own_residual: Tensor
    reference_residual: Tensor
    largest: Tensor
    smallest: Tensor
    negative_curvature: Tensor
    stationarity: Tensor
    solver_bound: Tensor
    inner_bound: Tensor

    @property
    def positive_definite(self) -> Tensor:
        """Whether A is positive definite, as far as Lanczos and conjugate gradients show, ``[tasks]``."""
        return (self.smallest > 0) & ~self.negative_curvature

    @property
    def solved(self) -> Tensor:
        """Whether A is positive definite and the reference solves the system to a residual of 1e-8, ``[tasks]``."""
        return self.positive_definite & (self.reference_residual <= _SOLVED)

    @property
    def condition(self) -> Tensor:
        """The condition number of A, ``[tasks]``; NaN unless `positive_definite`."""
        return torch.where(self.positive_definite, self.largest / self.smallest, torch.nan)

    def steps_for(self, tolerance: float) -> Tensor:
        """Return the first number of steps with an error of at most ``tolerance``, ``[tasks]``.

        Infinite where none of the measured ones suffices, NaN for tasks that are not `solved`.
        """
        steps = torch.arange(1, self.errors.shape[1] + 1, dtype=self.errors.dtype)
        first = torch.where(self.errors <= tolerance, steps, torch.inf).amin(1)
        return torch.where(self.solved, first, torch.nan)


def adjoint_errors(
    learner: ImplicitMAML,
    batch: Episode,
    steps: int = 30,
    reference_steps: int = 200,
    lanczos_steps: int = 30,
    seed: int = 0,
) -> AdjointErrors:
    """Measure the error of implicit MAML's adjoint u in each task, at the point φ where the inner solver stops.

    Everything is computed in double precision. The reference is the solution after ``reference_steps`` undamped
    conjugate-gradient steps; only tasks in which it has converged, to a relative residual of 1e-8, have errors.

    Two bounds follow theorem 1 of Rajeswaran et al. (2019, arXiv 1909.04630), for the meta-gradient ``Λ u`` of the
    adapted parameters' initialization. With μ the smallest eigenvalue of A and λ the largest entry of Λ:

    - ``solver_bound`` is ``λ ‖b − A u_k‖ / (μ ‖Λ u‖)``. It needs a positive definite A and nothing else.
    - ``inner_bound`` is ``λ L δ / (μ ‖Λ u‖)`` with ``δ = ‖∇L_S(φ) + Λ (φ − θ)‖ / μ``, which bounds ``‖φ − φ*‖``, and L
      the largest absolute eigenvalue of the query loss's Hessian at φ. It assumes that both losses are quadratic
      between φ and φ*: the theorem's term with the change of the Hessian, ``λ ρ b δ / μ²``, is left out, as its
      constant ρ cannot be measured.

    Eigenvalues are Lanczos' estimates, so that μ may be too large by what its last steps still gain.

    Args:
        learner: The learner; it stays as it is.
        batch: The tasks.
        steps: The most steps whose error is measured.
        reference_steps: Steps of the reference.
        lanczos_steps: Products for the extreme eigenvalues.
        seed: The seed of the Lanczos method's start vector.

    Raises:
        TypeError: If the learner is not implicit MAML.
        ValueError: If a number of steps is less than 1, or the inner solver diverges in a task.

    Example:
        >>> from torch import nn
        >>> from lightning_meta import Episode, ImplicitMAML
        >>> batch = Episode(*(torch.ones(2, 4, 1) for _ in range(4)))
        >>> learner = ImplicitMAML(nn.Linear(1, 1, bias=False), nn.MSELoss(), prox_lambda=2.0)
        >>> adjoint_errors(learner, batch, steps=2).largest  # the support loss has the curvature 2
        tensor([4., 4.], dtype=torch.float64)
    """
    if not isinstance(learner, ImplicitMAML):
        raise TypeError(
            f"learner must be an ImplicitMAML, whose meta-gradient is implicit, not {type(learner).__name__}"
        )
    for name, value in (("steps", steps), ("reference_steps", reference_steps), ("lanczos_steps", lanczos_steps)):
        check_count(name, value)
    precise, batch = _in_double_precision(learner), map_leaves(_double, batch)
    size = sum(p.numel() for name, p in precise.model.named_parameters() if name in precise.adapted_names)
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(precise.device)
    lanczos_steps = min(lanczos_steps, size)
    found = _of_tasks(precise, batch, lambda system: _spectrum_and_own(system, start, lanczos_steps))
    if not all(bool(found[name].isfinite().all()) for name in ("stationarity", "diagonal", "beside")):
        raise ValueError("a task's inner solver diverges: lower inner_lr, or analyze a trained learner")
    values, _ = ritz(found["diagonal"], found["beside"])
    smallest, largest = values[:, 0], values[:, -1]
    # The rest takes most of the time, and has a meaning only where the system is positive definite.
    candidates = torch.nonzero(smallest > 0)[:, 0]
    errors = torch.full((batch.num_tasks, steps), torch.nan, dtype=torch.float64)
    own_error, reference_residual, gradient, of_query = torch.full((4, batch.num_tasks), torch.nan, dtype=torch.float64)
    negative = torch.zeros(batch.num_tasks, dtype=torch.bool)
    if len(candidates):

        def against_reference(system: _System) -> dict[str, Tensor]:
            return _against_reference(system, start, steps, reference_steps, lanczos_steps)

        further = _of_tasks(precise, batch.select(candidates.to(precise.device)), against_reference)
        errors[candidates], own_error[candidates] = further["errors"], further["own_error"]
        reference_residual[candidates], gradient[candidates] = further["residual"], further["gradient"]
        negative[candidates] = further["negative"].bool()
        of_query[candidates] = ritz(further["diagonal"], further["beside"])[0].abs().amax(1)
    definite = (smallest > 0) & ~negative
    solved = definite & (reference_residual <= _SOLVED)
    scale = torch.where(definite, found["strength"] / (smallest * gradient), torch.nan)
    return AdjointErrors(
        errors=torch.where(solved[:, None], errors, torch.nan),
        own_steps=precise.meta_gradient.cg_steps,
        own_error=torch.where(solved, own_error, torch.nan),
        own_residual=found["own_residual"] / found["slope"],
        reference_residual=reference_residual,
        largest=largest,
        smallest=smallest,
        negative_curvature=negative,
        stationarity=found["stationarity"],
        solver_bound=scale * found["own_residual"],
        inner_bound=scale * of_query * found["stationarity"] / smallest,
    )


class _System(NamedTuple):
    """One task's system ``A u = b`` at the point φ where the inner solver stops.

    Attributes:
        learner: The learner.
        point: φ.
        apply: The product with A.
        of_query: The product with the query loss's Hessian.
        slope: b.
        strength: Λ.
        stationarity: ``∇L_S(φ) + Λ (φ − θ)``.
    """

    learner: ImplicitMAML
    point: Vector
    apply: Callable[[Vector], Vector]
    of_query: Callable[[Vector], Vector]
    slope: Vector
    strength: Vector
    stationarity: Vector

    @property
    def first_order(self) -> Vector:
        """``Λ⁻¹ b``, where the learner's iteration starts, or what it falls back to."""
        return {name: value / self.strength[name] for name, value in self.slope.items()}

    def own_iterates(self, steps: int) -> Iterator[Iterate]:
        """Yield the learner's iterates, with its damping and start."""
        own = self.learner.meta_gradient

        def damped(vector: Vector) -> Vector:
            return add(self.apply(vector), vector, own.cg_damping)

        initial = self.first_order if own.cg_warm_start else None
        return conjugate_gradient_iterates(damped, self.slope, steps, self.first_order, initial)


def _of_tasks(
    learner: ImplicitMAML, batch: Episode, measure: Callable[[_System], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return what is measured of each task's system, ``[tasks, ...]``."""
    queries = query_size(batch)

    def measured(meta: MetaParameters, task: Episode) -> TaskResult:
        problem = learner.inner_problem(meta, task.support)
        point, _ = run_through(learner.inner_loop(meta, task.support, learner.inner_steps))

        def query_loss(adapted: Vector) -> Tensor:
            return learner.loss(learner.query_output(meta, adapted, task.query_x), task.query_y, task.query_mask)

        # Torch's types allow for a third result, which only has_aux=True gives.
        slope, of_query = vjp(grad(query_loss), point)  # type: ignore[misc]
        stationarity, _, apply = problem.curvature(point)
        system = _System(
            learner, point, apply, lambda vector: of_query(vector)[0], slope, problem.strength, stationarity
        )
        found = measure(system)
        empty = found["diagonal"].new_zeros(())
        return TaskResult(empty, empty.expand(1, queries), empty.new_zeros(0), diagnostics=found)

    return {name: value.cpu() for name, value in learner.map_tasks(measured, batch).diagnostics.items()}


def _spectrum_and_own(system: _System, start: Tensor, lanczos_steps: int) -> dict[str, Tensor]:
    diagonal, beside = lanczos(flattened(system.apply, system.point), start, lanczos_steps)
    *_, own = system.own_iterates(system.learner.meta_gradient.cg_steps)
    return {
        "diagonal": diagonal,
        "beside": beside,
        "own_residual": norm(add(system.slope, system.apply(own.x), -1.0)),
        "stationarity": norm(system.stationarity),
        "slope": norm(system.slope),
        "strength": torch.stack(list(system.strength.values())).amax(),
    }


def _against_reference(
    system: _System, start: Tensor, steps: int, reference_steps: int, lanczos_steps: int
) -> dict[str, Tensor]:
    reference = conjugate_gradient(system.apply, system.slope, reference_steps, fallback=system.first_order)
    exact, own_steps = reference.x, system.learner.meta_gradient.cg_steps
    errors, own_gap = [], exact
    for step, iterate in enumerate(system.own_iterates(max(steps, own_steps)), start=1):
        gap = add(iterate.x, exact, -1.0)
        errors.append(norm(gap) / norm(exact))
        own_gap = gap if step == own_steps else own_gap
    gradient = norm(elementwise(exact, system.strength))
    diagonal, beside = lanczos(flattened(system.of_query, system.point), start, lanczos_steps)
    return {
        "diagonal": diagonal,
        "beside": beside,
        "errors": torch.stack(errors[:steps]),
        "own_error": norm(elementwise(own_gap, system.strength)) / gradient,
        "residual": norm(add(system.slope, system.apply(exact), -1.0)) / norm(system.slope),
        "negative": reference.negative_curvature.to(start.dtype),
        "gradient": gradient,
    }


def _in_double_precision(learner: ImplicitMAML) -> ImplicitMAML:
    trainer = learner.__dict__.get("_trainer")
    return copy.deepcopy(learner, {id(trainer): trainer}).double().eval()  # the trainer is not copied


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf
