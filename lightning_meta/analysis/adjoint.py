"""How well implicit MAML's conjugate gradients solve for the meta-gradient."""

from __future__ import annotations

import copy
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
from lightning_meta.inner.solvers.conjugate_gradient import conjugate_gradient, conjugate_gradient_iterates
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
        reference_residual: The same of the reference, ``[tasks]``.
        largest: The largest eigenvalue of A, ``[tasks]``; Lanczos' estimate is never above it.
        smallest: The smallest eigenvalue of A, ``[tasks]``; Lanczos' estimate is never below it.
        negative_curvature: Whether the iteration of the reference ended at a direction of negative curvature,
            ``[tasks]``.
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
    queries = query_size(batch)

    def measured(meta: MetaParameters, task: Episode) -> TaskResult:
        found = _of_task(precise, meta, task, start, steps, reference_steps, lanczos_steps)
        empty = start.new_zeros(())
        return TaskResult(empty, empty.expand(1, queries), empty.new_zeros(0), diagnostics=found)

    found = {name: value.cpu() for name, value in precise.map_tasks(measured, batch).diagnostics.items()}
    if not all(bool(found[name].isfinite().all()) for name in ("stationarity", "system_diagonal", "query_diagonal")):
        raise ValueError("a task's inner solver diverges: lower inner_lr, or analyze a trained learner")
    spectra = {}
    for name in ("system", "query"):
        values, _ = ritz(found.pop(f"{name}_diagonal"), found.pop(f"{name}_beside"))
        spectra[name] = values
    smallest, largest = spectra["system"][:, 0], spectra["system"][:, -1]
    negative = found["negative"].bool()
    definite = (smallest > 0) & ~negative
    solved = definite & (found["reference_residual"] <= _SOLVED)
    scale = torch.where(definite, found["strength"] / (smallest * found["gradient"]), torch.nan)
    return AdjointErrors(
        errors=torch.where(solved[:, None], found["errors"], torch.nan),
        own_steps=precise.meta_gradient.cg_steps,
        own_error=torch.where(solved, found["own_error"], torch.nan),
        own_residual=found["own_residual"] / found["slope"],
        reference_residual=found["reference_residual"],
        largest=largest,
        smallest=smallest,
        negative_curvature=negative,
        stationarity=found["stationarity"],
        solver_bound=scale * found["own_residual"],
        inner_bound=scale * spectra["query"].abs().amax(1) * found["stationarity"] / smallest,
    )


def _of_task(
    learner: ImplicitMAML,
    meta: MetaParameters,
    task: Episode,
    start: Tensor,
    steps: int,
    reference_steps: int,
    lanczos_steps: int,
) -> dict[str, Tensor]:
    problem, own = learner.inner_problem(meta, task.support), learner.meta_gradient
    point, _ = run_through(learner.inner_loop(meta, task.support, learner.inner_steps))

    def query_loss(adapted: Vector) -> Tensor:
        return learner.loss(learner.query_output(meta, adapted, task.query_x), task.query_y, task.query_mask)

    slope, of_query = vjp(grad(query_loss), point)  # type: ignore[misc]
    stationarity, _, apply = problem.curvature(point)
    strength = problem.strength
    first_order = {name: value / strength[name] for name, value in slope.items()}
    reference = conjugate_gradient(apply, slope, reference_steps, fallback=first_order)
    exact = reference.x

    def damped(vector: Vector) -> Vector:
        return add(apply(vector), vector, own.cg_damping)

    initial = first_order if own.cg_warm_start else None
    errors, at_own = [], exact
    for step, iterate in enumerate(
        conjugate_gradient_iterates(damped, slope, max(steps, own.cg_steps), first_order, initial), start=1
    ):
        errors.append(norm(add(iterate.x, exact, -1.0)) / norm(exact))
        at_own = iterate.x if step == own.cg_steps else at_own
    gradient = norm(elementwise(exact, strength))
    found = {
        "errors": torch.stack(errors[:steps]),
        "own_error": norm(elementwise(add(at_own, exact, -1.0), strength)) / gradient,
        "own_residual": norm(add(slope, apply(at_own), -1.0)),
        "reference_residual": norm(add(slope, apply(exact), -1.0)) / norm(slope),
        "negative": reference.negative_curvature.to(start.dtype),
        "stationarity": norm(stationarity),
        "slope": norm(slope),
        "gradient": gradient,
        "strength": torch.stack(list(strength.values())).amax(),
    }
    products = {"system": flattened(apply, point), "query": flattened(lambda vector: of_query(vector)[0], point)}
    for name, product in products.items():
        diagonal, beside = lanczos(product, start, min(lanczos_steps, len(start)))
        found |= {f"{name}_diagonal": diagonal, f"{name}_beside": beside}
    return found


def _in_double_precision(learner: ImplicitMAML) -> ImplicitMAML:
    trainer = learner.__dict__.get("_trainer")
    return copy.deepcopy(learner, {id(trainer): trainer}).double().eval()  # the trainer is not copied


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf
