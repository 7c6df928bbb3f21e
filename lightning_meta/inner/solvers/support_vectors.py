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
    """The dual, without derivative; ``[ways, examples]`` where not said.

    Attributes:
        kernel: K, ``[examples, examples]``.
        targets: Y.
        allowed: 1 where P may be positive, in classes with examples and for examples that are no padding; 0 elsewhere.
        cost: C.
    """

    kernel: Tensor
    targets: Tensor
    allowed: Tensor
    cost: float

    def moved(self, point: Tensor) -> Tensor:
        """Return ``Y − P``, with all digits where P is close to Y."""
        others = (1 - self.targets) * point
        return self.targets * others.sum(0) - others

    def slope(self, point: Tensor) -> Tensor:
        """Return the objective's derivative."""
        return self.targets / self.cost - self.moved(point) @ self.kernel

    def objective(self, point: Tensor, slope: Tensor) -> Tensor:
        """Return ``(1/C) Σ (1 − P_{i y_i}) − ½ Σ_k (Y_k − P_k)ᵀ K (Y_k − P_k)``, which is largest at the solution."""
        return 0.5 * ((self.targets / self.cost + slope) * self.moved(point)).sum()

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest value of each example over classes that have examples, ``[examples]``."""
        return torch.where(self.allowed > 0, values, torch.finfo(values.dtype).min).amax(0)


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
        allowed = targets.amax(1, keepdim=True) * real  # [ways, examples]
        problem = _Problem(fixed + ridge * torch.diag(real), targets, allowed, cost)
        point, slack = _solve(problem, steps)
        systems = _systems(problem, point, slack)
        moved = problem.moved(point)
        # Its value is the solution, as kernel and fixed are equal; its derivative that of the conditions.
        dual = cost * (moved - systems.solve(moved @ (kernel - fixed)))  # [ways, examples]
        weight = (dual @ x).mT  # [features, ways]
        gap = _relative_gap(problem, point)
    return SupportVectorSolution(weight.to(features.dtype), gap.to(features.dtype))


def _solve(problem: _Problem, steps: int) -> tuple[Tensor, Tensor]:
    """Return P and S, ``[ways, examples]``, after a number of interior-point steps."""
    count = problem.allowed.sum()
    each = problem.allowed.sum(0).clamp(min=1)  # [examples], the number of classes
    sums = problem.allowed.amax(0)  # [examples], what rows of P sum to: 0 for padding
    point = _start(problem, each)
    slope = problem.slope(point)
    lowest, highest = (problem.largest(sign * slope) for sign in (-1, 1))
    span = torch.where(sums > 0, lowest + highest, 0).amax() + 1 / problem.cost
    slack = torch.where(problem.allowed > 0, slope + lowest + span, 1)
    for _ in range(steps):
        systems = _systems(problem, point, slack)
        slope = problem.slope(point)
        interior = point + (1 - problem.allowed)
        ratio = slack / interior
        # The systems take any number that all classes of an example share: with this one the rest tends to 0.
        shared = ((slack - slope) * problem.allowed).sum(0) / each  # [examples]
        toward = -(slope + shared) * problem.allowed
        step = systems.solve(toward)  # the predictor: to the boundary, without regard to what comes after
        slack_step = -(slack + ratio * step) * problem.allowed
        length = _to_boundary(step / interior, slack_step / slack).clamp(max=1)
        gap = (point * slack).sum()
        left = ((point + length * step) * (slack + length * slack_step) * problem.allowed).sum()
        # The corrector: the closer the predictor comes to the solution, the closer to the boundary it may lead.
        center = ((left / gap) ** 3 * gap / count - step * slack_step) * problem.allowed / interior
        step = systems.solve(toward + center)
        slack_step = (center - slack - ratio * step) * problem.allowed
        length = (_TO_BOUNDARY * _to_boundary(step / interior, slack_step / slack)).clamp(max=1)
        length = length * (gap > _SOLVED * problem.objective(point, slope))
        point, slack = point + length * step, slack + length * slack_step
        point = point / (point.sum(0) + (1 - sums))  # against rounding errors
    return point, slack


def _start(problem: _Problem, each: Tensor) -> Tensor:
    """Return the best point between the labels and the even distribution: the solution is near labels for a large C."""
    away = problem.allowed / each - problem.targets
    curvature = ((away @ problem.kernel) * away).sum()
    descent = -(problem.targets * away).sum() / problem.cost
    part = torch.where(curvature > descent, descent / torch.where(curvature > 0, curvature, 1), 1)
    return problem.targets + part * away


def _systems(problem: _Problem, point: Tensor, slack: Tensor) -> ClassSystems:
    return ClassSystems.of(problem.kernel, point / slack, problem.allowed.amax(0))


def _to_boundary(*rates: Tensor) -> Tensor:
    """Return the length of steps at which the first value becomes 0; rates are steps relative to values."""
    fastest = torch.maximum(*(-rate.amin() for rate in rates))
    return 1 / fastest.clamp(min=1e-30)


def _relative_gap(problem: _Problem, point: Tensor) -> Tensor:
    """Return the duality gap of the weights that belong to a point, relative to the primal objective."""
    dual = problem.cost * problem.moved(point)
    scores = dual @ problem.kernel  # [ways, examples]
    half = 0.5 * (dual * scores).sum()  # ½ Σ_k ‖w_k‖²
    margins = problem.largest(1 - problem.targets + scores) - (problem.targets * scores).sum(0)  # [examples]
    primal = half + problem.cost * (margins * problem.allowed.amax(0)).sum()
    return (primal + half - (problem.targets * dual).sum()) / torch.where(primal > 0, primal, 1)
