"""The multi-class support vector machine of Crammer and Singer, solved in the dual, with its exact derivative.

Crammer, Singer, "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines", JMLR 2001. With
examples x and labels y, C the cost of violated margins:

    min over w, ξ of  ½ Σ_k ‖w_k‖² + C Σ_i ξ_i,      w_{y_i}ᵀ x_i − w_kᵀ x_i ≥ 1 − δ_{k y_i} − ξ_i

In the dual ``w_k = Σ_i α_ik x_i`` with ``α = C (Y − P)``, Y the one-hot labels and each row of P a distribution over
classes. With K the kernel of the examples, P minimizes ``½ Σ_k (P_k − Y_k)ᵀ K (P_k − Y_k) + (1/C) Σ_i P_{i y_i}``.

An interior-point method with predictor and corrector (Mehrotra, SIAM Journal on Optimization 1992) finds it. It starts
where all constraints hold, and takes a fixed number of steps. Its systems are those of logistic regression, see
`ClassSystems`, with weights P/S in place of probabilities, where S ≥ 0 are the multipliers of P ≥ 0.

The derivative is that of the conditions which define the solution (Amos, Kolter, "OptNet", ICML 2017): with
``K dP_k + ν = dS_k − dK (P_k − Y_k)``, ``S dP + P dS = 0`` and ``Σ_k dP_k = 0``, it is one more solution of the same
systems.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_meta.inner.solvers.class_systems import ClassSystems
from lightning_meta.inner.solvers.ridge import full_precision

# Added to the kernel's diagonal, relative to its mean: it makes α unique where examples depend linearly on each other.
# Below it systems lose digits, above it the solution.
_RIDGE = 1e-10

# The largest part of a step to the boundary that is taken.
_TO_BOUNDARY = 0.995

# A task is solved when the duality gap is below this, relative to the objective: further steps would round.
_SOLVED = 1e-13


class SupportVectorSolution(NamedTuple):
    """A fitted machine.

    Attributes:
        weight: w, ``[features, ways]``; 0 for classes without examples.
        gap: The duality gap, relative to the primal objective, a scalar; 0 for the exact solution.
    """

    weight: Tensor
    gap: Tensor


class _Problem(NamedTuple):
    """The dual; all are without derivative, and ``[ways, examples]`` where not said.

    Attributes:
        kernel: K, ``[examples, examples]``.
        targets: Y.
        valid: Where P may be positive: in classes with examples, for examples that are no padding.
        real: ``[examples]``, 1 where an example counts.
        cost: C.
    """

    kernel: Tensor
    targets: Tensor
    valid: Tensor
    real: Tensor
    cost: float

    def slope(self, point: Tensor) -> Tensor:
        """Return the objective's derivative."""
        return self.targets / self.cost - self.moved(point) @ self.kernel

    def moved(self, point: Tensor) -> Tensor:
        """Return ``Y − P``, with all digits where P is close to Y."""
        others = (1 - self.targets) * point
        return self.targets * others.sum(0) - others

    def masked(self, values: Tensor) -> Tensor:
        """Return values, 0 where P is fixed."""
        return torch.where(self.valid, values, 0)


def support_vectors(
    features: Tensor, one_hot: Tensor, mask: Tensor | None, cost: float, steps: int
) -> SupportVectorSolution:
    """Fit the machine; its derivative is exact, and of first order only.

    Computed in double precision where the device has it. Tasks that are solved earlier keep their solution.

    Args:
        features: x, ``[examples, features]``.
        one_hot: Labels as one-hot rows, ``[examples, ways]``; the rows of padding are 0.
        mask: ``[examples]``, True where an example counts; None where all do.
        cost: C, positive.
        steps: The number of interior-point steps.
    """
    dtype = torch.float32 if features.device.type == "mps" else torch.float64
    with full_precision(features.device):
        x, targets = features.to(dtype), one_hot.to(dtype).mT
        if mask is not None:
            x = torch.where(mask[:, None], x, 0)
        real = x.new_ones(x.shape[0]) if mask is None else mask.to(dtype)  # [examples]
        kernel = x @ x.mT
        fixed = kernel.detach()
        ridge = _RIDGE * fixed.diagonal().sum() / real.sum()
        valid = (targets.sum(1, keepdim=True) > 0) & (real > 0)  # [ways, examples]
        problem = _Problem(fixed + ridge * torch.diag(real), targets, valid, real, cost)
        point, slack = _solve(problem, steps)
        systems = _systems(problem, point, slack)
        moved = problem.moved(point)
        # Its value is the solution, as kernel and fixed are equal; its derivative that of the conditions.
        dual = cost * (moved - systems.solve(problem.masked(moved @ (kernel - fixed))))  # [ways, examples]
        weight = (dual @ x).mT  # [features, ways]
        gap = _relative_gap(problem, point)
    return SupportVectorSolution(weight.to(features.dtype), gap.to(features.dtype))


def _solve(problem: _Problem, steps: int) -> tuple[Tensor, Tensor]:
    """Return P and S, ``[ways, examples]``, after a number of interior-point steps."""
    valid = problem.valid
    allowed = valid.to(problem.kernel.dtype)
    count = allowed.sum()
    each = allowed.sum(0).clamp(min=1)  # [examples], the number of classes
    # The best point between the labels and the even distribution: for large features or C the solution is near labels.
    away = allowed / each - problem.targets
    curvature = (away @ problem.kernel * away).sum()
    descent = -(problem.targets * away).sum() / problem.cost
    part = torch.where(curvature > descent, descent / torch.where(curvature > 0, curvature, 1), 1)
    point = torch.where(valid, problem.targets + part * away, 0)
    slope = problem.slope(point)
    lowest, highest = (_over_valid(valid, slope, sign).amax(0) for sign in (-1.0, 1.0))
    span = torch.where(problem.real > 0, lowest + highest, 0).amax() + 1 / problem.cost
    slack = torch.where(valid, slope + lowest + span, 1)
    for _ in range(steps):
        systems = _systems(problem, point, slack)
        slope = problem.slope(point)
        interior = torch.where(valid, point, 1)
        # The systems take any number that all classes of an example share: with this one the rest tends to 0.
        shared = problem.masked(slack - slope).sum(0) / each  # [examples]
        toward = problem.masked(-slope - shared)

        def direction(
            center: Tensor | float,
            systems: ClassSystems = systems,
            toward: Tensor = toward,
            slack: Tensor = slack,
            interior: Tensor = interior,
        ) -> tuple[Tensor, Tensor]:
            step = systems.solve(toward + problem.masked(center / interior))
            return step, problem.masked(center / interior - slack - slack / interior * step)

        zero = torch.zeros_like(point)
        step, slack_step = direction(zero)
        length = _to_boundary(problem, (step, interior), (slack_step, slack)).clamp(max=1)
        product = problem.masked(point * slack).sum()
        left = problem.masked((point + length * step) * (slack + length * slack_step)).sum()
        center = (left / product) ** 3 * product / count
        step, slack_step = direction(problem.masked(center - step * slack_step))
        length = (_TO_BOUNDARY * _to_boundary(problem, (step, interior), (slack_step, slack))).clamp(max=1)
        length = torch.where(product > _SOLVED * _objective(problem, point), length, 0)
        point, slack = point + length * step, slack + length * slack_step
        point = point / torch.where(problem.real > 0, point.sum(0), 1)  # of rounding errors
    return point, slack


def _systems(problem: _Problem, point: Tensor, slack: Tensor) -> ClassSystems:
    return ClassSystems.of(problem.kernel, problem.masked(point / slack), problem.real)


def _to_boundary(problem: _Problem, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Return the length at which the first of the values becomes 0; pairs are steps and values."""
    shrinking = torch.stack([problem.masked(-step / value) for step, value in pairs])
    return 1 / shrinking.amax().clamp(min=1e-30)


def _over_valid(valid: Tensor, values: Tensor, sign: float) -> Tensor:
    return torch.where(valid, sign * values, -torch.inf)


def _objective(problem: _Problem, point: Tensor) -> Tensor:
    """Return the value of the dual, ``(1/C) Σ (1 − P_{i y_i}) − ½ Σ_k (Y_k − P_k)ᵀ K (Y_k − P_k)``."""
    moved = problem.moved(point)
    return (problem.targets * moved).sum() / problem.cost - 0.5 * (moved @ problem.kernel * moved).sum()


def _relative_gap(problem: _Problem, point: Tensor) -> Tensor:
    """Return the duality gap of the weights that belong to a point, relative to the primal objective."""
    dual = problem.cost * problem.moved(point)
    scores = dual @ problem.kernel  # [ways, examples]
    half = 0.5 * (dual * scores).sum()  # ½ Σ_k ‖w_k‖²
    margins = _over_valid(problem.valid, 1 - problem.targets + scores, 1.0).amax(0)
    violations = torch.where(problem.real > 0, margins - (problem.targets * scores).sum(0), 0)
    primal = half + problem.cost * violations.sum()
    return (primal + half - (problem.targets * dual).sum()) / torch.where(primal > 0, primal, 1)
