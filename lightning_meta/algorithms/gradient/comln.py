"""COMLN: the last layer adapts by gradient flow, for a learned time.

Paper: Deleu, Kanaa, Feng, Kerg, Bengio, Lajoie, Bacon, "Continuous-Time Meta-Learning with Forward Mode
Differentiation", ICLR 2022, arXiv 2203.01443.

The model's last layer W, on the features F of the support set, follows the gradient of the support loss from its
initialization for a time T:

    min over θ, W₀, T of the mean over tasks of  L_Q(W(T)),      dW/dt = −∇_W L_S(W),   W(0) = W₀

Features θ, W₀ and T are meta-learned. W(t) is W₀ and a combination of the features, ``W₀ − s(t)ᵀ F``, so that the
equation to solve is one of ``[support, outputs]`` numbers:

    ds/dt = ∂L_S/∂Z at Z = F W₀ᵀ − K s,        K = F Fᵀ

The derivatives of s(T) by F W₀ᵀ, K and T are solved for beside s, forward in time. The meta-gradient is
exact, in memory that does not grow with T or the number of steps of the solver.

Differences from the paper:
- The authors' solver chooses its steps; here there are ``solver_steps`` equal ones of the classic Runge–Kutta method of
  fourth order, so that tasks can be vectorized. ``train/solver_step`` tells when they are too few.
- The derivative by T is that of the Runge–Kutta solution, too, in place of the right-hand side at T.
- T is learned by its logarithm, as in the authors' code, and stays positive.
- The last layer has a bias if the model's has one: a constant feature. The mean squared error is also a loss.
- The authors solve for a derivative by the features; here it is by K, in as many numbers.
- ``derivatives="reverse"`` keeps the solver's steps and differentiates back through them: with many support examples it
  takes less memory and time. Both give the same meta-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_choice, check_count, check_rate
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.episodes.trees import map_leaves
from lightning_meta.execution.linear_head import linear_head
from lightning_meta.inner import InnerStep
from lightning_meta.inner.solvers.gradient_flow import CrossEntropy, SquaredError, gradient_flow
from lightning_meta.inner.solvers.ridge import full_precision
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import TaskLearner
from lightning_meta.learners.randomness import keeping_random_state
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.features import single_or_double

Derivatives = Literal["forward", "reverse"]


class COMLN(TaskLearner):
    """Continuous-time meta-learning (Deleu et al., 2022): `ANIL` with infinitely many infinitely small steps.

    How far a task adapts, the time T, is meta-learned in place of chosen.

    Args:
        model: A model that ends in a linear layer, whose output it returns. The layer adapts; its initialization and
            the features before it are meta-learned.
        loss_fn: ``nn.CrossEntropyLoss()`` (None), also with smoothed labels, or ``nn.MSELoss()``.
        horizon: The initial time T; K inner steps of a rate α are about a time of K α.
        solver_steps: Runge–Kutta steps. ``T / solver_steps`` must be small beside 1 over the largest curvature of the
            support loss: watch ``train/solver_step``.
        derivatives: "forward": memory does not grow with ``solver_steps``, but with the cube of the support examples.
            "reverse": memory grows with ``solver_steps``, and with the number of examples.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the loss is another, or the model does not end in a linear layer
            of its own.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import COMLN
        >>> learner = COMLN(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), horizon=10.0)
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape
        torch.Size([10, 3])
    """

    diagnostic_names = ("horizon", "solver_step")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        horizon: float = 1.0,
        solver_steps: int = 32,
        derivatives: Derivatives = "forward",
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        check_rate("horizon", horizon)
        check_count("solver_steps", solver_steps)
        check_choice("derivatives", derivatives, Derivatives)
        _check_flow_loss(self.loss_fn)
        name, head = linear_head(model, "COMLN adapts")
        _check_own(model, head, name)
        self.solver_steps = solver_steps
        self.derivatives = derivatives
        self.head_weight = f"{name}.weight" if name else "weight"
        self.head_bias = None if head.bias is None else f"{name}.bias" if name else "bias"
        self.log_horizon = nn.Parameter(head.weight.new_tensor(math.log(horizon)).detach())

    def adapt_task(self, meta: MetaParameters, support: Support) -> Vector:
        """Return the last layer's weight ``[outputs, features]`` and bias ``[outputs]`` after the time T."""
        return self._flowed(meta, support, forward=self.derivatives == "forward")[0]

    def adaptation(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the last layer after the time T, without derivatives."""
        yield InnerStep(self._flowed(meta, support, forward=False)[0], None)

    def query_output(self, meta: MetaParameters, state: Vector, x: Any) -> Tensor:
        """Return the model's output with the task's last layer, ``[query, outputs]``."""
        return self.call_model({**self.model_parameters(meta), **state}, x)

    def adapted_parameters(self, meta: MetaParameters, state: Vector) -> Mapping[str, Tensor]:
        """Return the last layer's parameters."""
        return state

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the query loss after the time T, and the report."""
        state, solver_step = self._flowed(meta, task.support, forward=self.derivatives == "forward")
        output = self.query_output(meta, state, task.query_x)
        loss = self.loss(output, task.query_y, task.query_mask)
        diagnostics = {"horizon": meta["log_horizon"].exp(), "solver_step": solver_step}
        return loss, TaskResult(loss, output[None], loss.new_zeros(0), diagnostics=diagnostics)

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of the model's output.

        Raises:
            ValueError: If the model cannot take the inputs, or does not return its last layer's output unchanged.
        """
        is_new = self._output_shape is None
        shape = super().output_shape(support)
        if is_new:
            self._check_head_is_last(support)
        return shape

    def rates_in_errors(self) -> str:
        """Return the time and the number of steps."""
        return f" (a time of {float(self.log_horizon.detach().exp()):.3g} in solver_steps={self.solver_steps})"

    def _flowed(self, meta: MetaParameters, support: Support, forward: bool) -> tuple[Vector, Tensor]:
        """Return the last layer after the time T, and a bound on the solver's step times the largest curvature."""
        parameters = self.model_parameters(meta)
        given = parameters[self.head_weight]
        dtype = single_or_double(given.dtype)  # half precision would lose the small steps
        weight = given.to(dtype)
        features = self._features(parameters, support.x).to(dtype)  # [support, features]
        loss = _flow_loss(self.loss_fn, support.y, support.mask, weight)
        with full_precision(weight.device):
            gram, start = features @ features.mT, features @ weight.mT
            if self.head_bias is not None:
                gram, start = gram + 1, start + parameters[self.head_bias]
            time = meta["log_horizon"].to(dtype).exp()
            moved = gradient_flow(loss, start, gram, time, self.solver_steps, forward)  # [support, outputs]
            state = {self.head_weight: (weight - moved.mT @ features).to(given.dtype)}
            if self.head_bias is not None:
                state[self.head_bias] = (parameters[self.head_bias] - moved.sum(0)).to(given.dtype)
            largest = loss.largest_curvature() * (loss.weights * gram.diagonal()).sum()
        return state, (time * largest / self.solver_steps).detach()

    def _features(self, parameters: Vector, x: Any) -> Tensor:
        """Return the last layer's inputs, ``[examples, features]``: its output if it is the identity."""
        # Not by a hook as in `features_and_output`, with which steps of other modules cannot be recorded.
        weight = parameters[self.head_weight]
        identity = {self.head_weight: torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)}
        if self.head_bias is not None:
            identity[self.head_bias] = weight.new_zeros(weight.shape[1])
        return self.call_model({**parameters, **identity}, x)

    def _check_head_is_last(self, support: Support) -> None:
        x = map_leaves(lambda leaf: leaf[0], support.x)
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        weight = parameters[self.head_weight]
        with torch.no_grad():
            with keeping_random_state(self.device):
                output = self.call_model(parameters, x)
            with keeping_random_state(self.device):  # the same dropout
                features = self._features(parameters, x)
            is_last = features.ndim == 2 and features.shape[1] == weight.shape[1] and output.ndim == 2
            if is_last:
                bias = None if self.head_bias is None else parameters[self.head_bias]
                again = F.linear(features.to(weight.dtype), weight, bias)
                tolerance = 1e-3 if output.dtype == weight.dtype else 0.05  # autocast's numbers have few digits
                is_last = bool((output.float() - again.float()).norm() <= tolerance * again.float().norm() + 1e-6)
        if not is_last:
            self._output_shape = None
            raise ValueError(
                f"model does not return the output of model.{self.head_weight.rpartition('.')[0]} on [examples, "
                "features] unchanged, and COMLN adapts a last layer: leave out what the model does after it"
            )


def _check_flow_loss(loss_fn: LossFunction) -> None:
    known = type(loss_fn) in (nn.CrossEntropyLoss, nn.MSELoss) or loss_fn in (F.cross_entropy, F.mse_loss)
    weighs = getattr(loss_fn, "weight", None) is not None or getattr(loss_fn, "reduction", "mean") != "mean"
    if not known or weighs:
        raise ValueError(
            f"loss_fn={loss_fn!r}: COMLN follows the gradient of nn.CrossEntropyLoss() or nn.MSELoss(), with "
            "reduction='mean' and without weights: use one of them"
        )


def _check_own(model: nn.Module, head: nn.Linear, name: str) -> None:
    everywhere = [id(p) for _, p in model.named_parameters(remove_duplicate=False)]
    own = [p for p in (head.weight, head.bias) if p is not None]
    if any(everywhere.count(id(p)) != 1 for p in own):
        raise ValueError(
            f"model.{name} shares its parameters with another layer, and COMLN adapts it alone: untie them"
        )
    if not all(p.requires_grad for p in own):
        raise ValueError(f"model.{name} is frozen, and COMLN meta-learns its initialization: set requires_grad=True")


def _flow_loss(loss_fn: LossFunction, y: Tensor, mask: Tensor | None, like: Tensor) -> CrossEntropy | SquaredError:
    """Return the mean loss over the examples that count, as a function of outputs."""
    counted = torch.ones(y.shape[0], dtype=like.dtype, device=like.device) if mask is None else mask.to(like.dtype)
    if isinstance(loss_fn, nn.MSELoss) or loss_fn is F.mse_loss:
        return SquaredError(y.to(like.dtype), counted / counted.sum())
    outputs = like.shape[0]
    if not y.is_floating_point():
        real = y != getattr(loss_fn, "ignore_index", -100)
        counted = counted * real
        y = (y[:, None] == torch.arange(outputs, device=y.device)).to(like.dtype)  # [support, outputs]
    smoothing = getattr(loss_fn, "label_smoothing", 0.0)
    return CrossEntropy((1 - smoothing) * y + smoothing / outputs, counted / counted.sum())
