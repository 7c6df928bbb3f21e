"""Implicit MAML.

Paper: Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019, arXiv 1909.04630.

The task's parameters minimize the support loss with a proximal pull to the initialization θ (equation 3):

    φ*(θ) = argmin_φ  L_S(φ) + ½ (φ − θ)ᵀ Λ (φ − θ),        Λ = λ I in the paper

The meta-gradient follows from the implicit function theorem (lemma 1), for every solver of this problem:

    dL_Q(φ*)/dθ = Λ u,      (H_S(φ*) + Λ) u = ∇L_Q(φ*)

The adjoint u, the Lagrange multiplier of the stationarity constraint ``∇L_S(φ) + Λ (φ − θ) = 0``, is found by
conjugate gradients with Hessian-vector products (algorithm 2). Memory does not grow with the inner steps. Parameters
s that do not adapt have ``dL_Q/ds = ∂L_Q/∂s − (∂²L_S/∂φ∂s)ᵀ u``; a learned λ of one tensor has
``dL_Q/dλ = uᵀ (θ − φ*)`` over that tensor.

With ``‖φ − φ*‖ ≤ δ`` and the linear system solved to δ', the error of the meta-gradient is at most
``δ' + (λ/μ) L δ + (λ ρ b/μ²) δ`` (theorem 1 of the paper, with its smoothness constants): so the residual of the
linear system and the inner stationarity ``‖∇L_S(φ) + Λ (φ − θ)‖ ≥ μ δ`` are logged.

Differences from the paper:
- λ may differ between tensors and may be learned, through its logarithm.
- If the first search direction has negative curvature, u is ``Λ⁻¹ ∇L_Q``, and the meta-gradient is the first-order
  one. Negative curvature in a later direction ends the iteration. The paper assumes a positive definite system.
- The authors' code minimizes the support loss without the proximal term, adds one proximal step at the end, and damps
  the linear system by 10. Here the solvers minimize the regularized loss, and damping is 0 unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vjp

from lightning_meta.arguments import check_choice
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.inner import SGD, Implicit, InnerStep, adapted_names
from lightning_meta.inner.inner_loop import run_through
from lightning_meta.inner.solvers.proximal import ProximalProblem, newton_step
from lightning_meta.inner.solvers.proximal_strength import LearnedLambda, ProximalStrength, geometric_mean
from lightning_meta.inner.vectors import Vector, add, dot, elementwise, norm
from lightning_meta.learners import GradientLearner, module_part
from lightning_meta.likelihoods import LossFunction

# Stationarity over pull. At 2, gradients of quadratics were 20 to 65 % off, at 0.7 10 to 35 %, at 0.15 3 to 11 %.
_FAR_FROM_SOLVED = 1.0

InnerSolver = Literal["gradient_descent", "hessian_free"]


class ImplicitMAML(GradientLearner):
    """MAML with a regularized inner problem and its implicit gradient (iMAML; Rajeswaran et al., 2019).

    Also logged in training: ``train/cg_residual``, relative to the right-hand side; ``train/inner_stationarity``, the
    norm of the regularized objective's gradient where the inner solver stopped; ``train/proximal_pull``, that of its
    part ``Λ (φ − θ)``; ``train/negative_curvature``, the share of tasks whose linear system showed it;
    ``train/prox_lambda``, the geometric mean over tensors.

    Stationarity over pull bounds the solver's relative error: for a convex support loss and a single λ,
    ``‖φ − φ*‖ / ‖φ − θ‖`` is at most this ratio. Training warns once if its mean over the tasks so far exceeds 1: the
    implicit gradient, that of φ*, may then be far off.

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The rate of gradient descent; not used by "hessian_free", whose steps start at the whole
            Newton step. Stable below ``2 / (L + λ)``, L the largest curvature of the support loss.
        inner_steps: Steps of the inner solver, which take time and no memory. The paper takes 16 (Omniglot 5-way) or 25
            (20-way), too few for regressions on standardized inputs at the default rate.
        eval_inner_steps: Steps of the inner solver in evaluation.
        inner_solver: "gradient_descent" on the regularized objective, by ``inner_optimizer``, or "hessian_free":
            Newton steps by conjugate gradients with a line search.
        prox_lambda: The strength λ of the pull towards the initialization, positive; or strengths by name pattern, of
            which the first match counts: ``{"head.*": 0.5, "*": 2.0}``.
        learned_lambda: Whether λ is learned too: "none", "scalar" (one factor for all tensors) or "tensor".
        cg_steps: Conjugate-gradient steps for the adjoint, and for a Newton direction.
        cg_damping: Added to the diagonal of the adjoint's system; 0 is the true gradient.
        cg_warm_start: Whether to start at ``Λ⁻¹ ∇L_Q``, the solution for large λ, in place of zero, for one more
            Hessian-vector product.
        adapt: The parameters of the inner problem: "all", "head", "body" or name patterns, as in `MAML`.
        **options: As in `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range or a pattern matches no parameter.
        TypeError: If the model has layers that cannot run per task, or an argument's name is not known.
    """

    diagnostic_names = ("cg_residual", "inner_stationarity", "proximal_pull", "negative_curvature", "prox_lambda")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        inner_steps: int = 64,
        eval_inner_steps: int | None = None,
        inner_solver: InnerSolver = "gradient_descent",
        prox_lambda: float | dict[str, float] = 2.0,
        learned_lambda: LearnedLambda = "none",
        cg_steps: int = 5,
        cg_damping: float = 0.0,
        cg_warm_start: bool = False,
        adapt: str | Sequence[str] = "all",
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, inner_steps, eval_inner_steps, **options)
        check_choice("inner_solver", inner_solver, InnerSolver)
        if inner_solver == "hessian_free" and not isinstance(self.inner_optimizer, SGD):
            raise ValueError(
                f'inner_optimizer={options["inner_optimizer"]!r} is not used by inner_solver="hessian_free": leave one '
                "of them out"
            )
        self.inner_solver = inner_solver
        self.meta_gradient = Implicit(cg_steps, cg_damping, cg_warm_start)
        self.adapted_names = adapted_names(model, adapt)
        self._norms = {"inner_stationarity": 0.0, "proximal_pull": 0.0}
        self._warned = False
        self.prox_strength = ProximalStrength(self.adapted_names, prox_lambda, learned_lambda)

    def inner_problem(self, meta: MetaParameters, support: Support) -> ProximalProblem:
        """Return the problem that a task's inner steps solve."""
        shared = self._shared(meta)
        parameters = self.model_parameters(meta)
        anchor = {name: parameters[name] for name in self.adapted_names}
        strength = self.prox_strength.at(module_part(meta, "prox_strength"), anchor)
        return ProximalProblem(lambda adapted: self._support_loss(adapted, shared, support), anchor, strength)

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the adapted parameters after 0, 1, ..., ``steps`` steps of the inner solver."""
        problem = self.inner_problem(meta, support)
        point, state = problem.anchor, self.inner_optimizer.init(problem.anchor)
        rates = dict.fromkeys(point, self.inner_lr)
        yield InnerStep(point, None)
        for step in range(steps):
            if self.inner_solver == "gradient_descent":
                gradient, loss = problem.gradient(point)
                point, state = self.inner_optimizer.update(point, gradient, state, rates, step)
            else:
                point, loss = newton_step(problem, point, self.meta_gradient.cg_steps)
            yield InnerStep(point, loss)

    def task_gradient(self, meta: MetaParameters, task: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        """Return the implicit gradient and the report."""
        point, support_losses = run_through(self.inner_loop(meta, task.support, self.inner_steps))
        problem, shared = self.inner_problem(meta, task.support), self._shared(meta)

        def query_loss(adapted: Vector, shared: Vector) -> tuple[Tensor, Tensor]:
            within = {**meta, **{f"model.{name}": value for name, value in shared.items()}}
            output = self.query_output(within, adapted, task.query_x)
            return self.loss(output, task.query_y, task.query_mask), output

        slopes, (loss, output) = grad_and_value(query_loss, argnums=(0, 1), has_aux=True)(point, shared)
        slope, shared_slope = slopes
        (adjoint, residual, negative), stationarity = self.meta_gradient.adjoint(problem, point, slope)
        gradient = {f"model.{name}": value for name, value in elementwise(adjoint, problem.strength).items()}
        gradient |= self._shared_gradient(meta, task, point, adjoint, shared_slope)
        gradient |= self._strength_gradient(meta, problem, point, adjoint)
        diagnostics = {
            "cg_residual": residual,
            "inner_stationarity": norm(stationarity),
            "proximal_pull": norm(problem.pull(point)),
            "negative_curvature": negative.to(residual.dtype),
            "prox_lambda": geometric_mean(problem.strength),
        }
        return gradient, TaskResult(loss, output[None], support_losses, diagnostics=diagnostics)

    def after_batch(self, result: TaskResult) -> None:
        """Warn once if the inner problems of training so far are far from solved."""
        if self._warned:
            return
        for name, total in self._norms.items():
            self._norms[name] = total + float(result.diagnostics[name].mean())
        stationarity, pull = self._norms.values()
        if stationarity <= _FAR_FROM_SOLVED * pull:
            return
        self._warned = True
        rate = f" with inner_lr={self.inner_lr}" if self.inner_solver == "gradient_descent" else ""
        ratio = stationarity / pull if pull else math.inf
        rank_zero_warn(
            f"The inner problem is far from solved after inner_steps={self.inner_steps}{rate}: its gradient's norm is "
            f"{ratio:.3g} times the proximal pull's on average over the tasks of training. The implicit gradient, that "
            f"of the solution, may be far off: raise inner_steps{', inner_lr' if rate else ''} or prox_lambda."
        )

    def _shared(self, meta: MetaParameters) -> Vector:
        return {name: p for name, p in self.model_parameters(meta).items() if name not in self.adapted_names}

    def _support_loss(self, adapted: Vector, shared: Vector, support: Support) -> Tensor:
        return self.set_loss({**shared, **adapted}, support)

    def _shared_gradient(
        self, meta: MetaParameters, task: Episode, point: Vector, adjoint: Vector, direct: Vector
    ) -> Vector:
        if not direct:
            return {}

        def support_gradient(shared: Vector) -> Vector:
            return grad(self._support_loss)(point, shared, task.support)

        pull_back = vjp(support_gradient, self._shared(meta))[1]
        total = add(direct, pull_back(adjoint)[0], -1.0)
        return {f"model.{name}": value for name, value in total.items()}

    def _strength_gradient(
        self, meta: MetaParameters, problem: ProximalProblem, point: Vector, adjoint: Vector
    ) -> Vector:
        values = module_part(meta, "prox_strength")
        if not values:
            return {}
        pull_back = vjp(lambda at: self.prox_strength.at(at, problem.anchor), values)[1]
        moved = add(problem.anchor, point, -1.0)
        slopes = {name: dot({name: adjoint[name]}, {name: moved[name]}) for name in moved}
        return {f"prox_strength.{name}": value for name, value in pull_back(slopes)[0].items()}
