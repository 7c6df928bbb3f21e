"""Amortized MAML: a network generates the initialization, and the head is solved for in closed form.

Papers: Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with Differentiable Closed-form Solvers", ICLR 2019, arXiv
1805.08136 (R2-D2: the ridge head); Harrison, Sharma, Pavone, "Meta-learning Priors for Efficient Online Bayesian
Regression", 2018, arXiv 1807.08912 (ALPaCA: the head as Bayesian linear regression). Related: VERSA (Gordon et al.,
ICLR 2019) and LEO (Rusu et al., ICLR 2019), which also generate parameters from a support set.

The posterior over a task's initial parameters is amortized by an encoder of the support set S, invariant to its order:

    q(φ₀ | S) = N(θ + m(S), diag s²(S)),        prior  p_θ(φ₀) = N(θ, diag σ²)

With features h from the body under a draw of φ₀, the head minimizes ``‖Y − H W‖² + λ ‖W − W₀‖²``, in the dual where
examples are fewer than features; no second derivative is needed. As Bayesian linear regression with noise σ_y², it has
the predictive variance ``σ_y² (1 + hᵀ (HᵀH + λI)⁻¹ h)``. The meta-loss, with Q queries, is

    mean over queries of −log p(y | x, S)  +  (w / Q) KL(q(φ₀ | S) ‖ p_θ)

where p(y | x, S) is the mean over draws of φ₀ and, for classes, over draws of the head's output.

Differences from the papers:
- The ridge penalty pulls towards the model's own head W₀, which is meta-learned, as in ALPaCA; R2-D2 pulls towards 0.
- Classes are regressed on one-hot targets, and the outputs are scaled and shifted by learned numbers, as in R2-D2. The
  regression's variance adds draws of logits, which R2-D2 does not have.
- Gradient steps on the support loss may follow (``inner_steps`` > 1).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.execution.functional import call_with
from lightning_meta.execution.linear_head import features_and_output, linear_head
from lightning_meta.inner import adapted_names
from lightning_meta.inner.inner_loop import InnerStep, run_through
from lightning_meta.inner.names import key_of
from lightning_meta.inner.solvers.ridge import RidgeSolution, ridge
from lightning_meta.inner.variational.gaussian import DiagonalGaussian, gaussian_kl
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import BayesianLearner, module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.losses import target_rows
from lightning_meta.likelihoods.predictive import Samples, mean_output
from lightning_meta.models.batch_statistics import check_no_statistics
from lightning_meta.models.features import single_or_double
from lightning_meta.models.set_encoder import SetEncoder

_GENERATED_AT_MOST = 5_000


class AmortizedTask(NamedTuple):
    """One draw of a task's model.

    Attributes:
        body: Generated parameters by name.
        head: The solved head; before adaptation the model's own, without a variance.
    """

    body: Vector
    head: RidgeSolution | Tensor


class AmortizedMAML(BayesianLearner):
    """A generated initialization with a closed-form head and its predictive variance.

    The model must end in an `nn.Linear`, the head.

    Args:
        model: The model; its parameters are the means of the prior.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        encoder: Maps a support set ``[support, features + outputs]``, the prior model's features and one-hot labels or
            targets, to ``[2 · generated]`` numbers: for each generated parameter the mean's offset from the prior's and
            the log-ratio of the standard deviations. It must not depend on the order of the set. None: a `SetEncoder`.
        generate: The generated parameters: "body" (all but the head) or name patterns, as in `MAML`. None: the body if
            it has at most 5,000 parameters, otherwise its biases and scales.
        num_samples: Draws of the generated parameters in training's meta-loss.
        eval_num_samples: Draws of the generated parameters in `adapt` and evaluation.
        head_samples: For classes, draws of the head's output for each draw of the generated parameters.
        kl_weight: w.
        initial_log_std: The initial value of the prior's log σ.
        ridge_penalty: The initial value of λ, which is learned by its logarithm.
        inner_steps: 1 generates and solves; each further step is a gradient step on the support loss.
        **options: As in `BayesianLearner`, `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the model does not end in an `nn.Linear`, or the encoder's
            output does not fit it or it has batch normalization.
        TypeError: If an argument is unknown, the model has layers that cannot run per task, or a subclass
            overrides `inner_loop` alone.
    """

    requires_unpadded = True
    is_stochastic = True

    diagnostic_names = ("nll", "kl", "ridge_penalty")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        encoder: nn.Module | None = None,
        generate: str | Sequence[str] | None = None,
        num_samples: int = 1,
        eval_num_samples: int = 4,
        head_samples: int = 8,
        kl_weight: float = 0.01,
        initial_log_std: float = -4.0,
        ridge_penalty: float = 1.0,
        inner_steps: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, normalize_steps=True, inner_steps=inner_steps, **options)
        arguments.check_count("num_samples", num_samples)
        arguments.check_count("eval_num_samples", eval_num_samples)
        arguments.check_count("head_samples", head_samples)
        arguments.check_rate("kl_weight", kl_weight)
        own = type(self)
        if own.inner_loop is not AmortizedMAML.inner_loop and own.task_loss is AmortizedMAML.task_loss:
            raise TypeError(f"{own.__name__} overrides inner_loop, which only evaluation calls: override draw_task")
        arguments.check_rate("ridge_penalty", ridge_penalty)
        self.num_samples = num_samples
        self.eval_num_samples = eval_num_samples
        self.head_samples = head_samples
        self.kl_weight = kl_weight
        self.head_name, head = linear_head(model, "AmortizedMAML solves for")
        self.outputs = head.out_features
        parameters = dict(model.named_parameters())
        self.generated_names = _generated_names(model, generate, self.head_name)
        generated = {name: parameters[name] for name in self.generated_names}
        self.log_std = nn.ParameterDict(
            {key_of(name): nn.Parameter(torch.full_like(p, initial_log_std)) for name, p in generated.items()}
        )
        size = sum(p.numel() for p in generated.values())
        elements = head.in_features + head.out_features
        self.encoder = SetEncoder(elements, 2 * size).to(head.weight) if encoder is None else encoder
        _check_encoder(self.encoder, elements, 2 * size)
        self._keep_frozen("encoder")
        self.log_penalty = nn.Parameter(head.weight.new_tensor(math.log(ridge_penalty)))
        # For classes: what turns a regression on one-hot targets into logits, and that regression's noise.
        classes = self.likelihood != "gaussian"
        self.draws_together = head_samples if classes else 1
        self.log_scale = nn.Parameter(head.weight.new_tensor(math.log(5.0))) if classes else None
        self.shift = nn.Parameter(head.weight.new_tensor(0.0)) if classes else None
        self.log_head_std = nn.Parameter(head.weight.new_tensor(-1.0)) if classes else None

    def inner_loop(self, meta: MetaParameters, support: Support, steps: int) -> Iterator[InnerStep]:
        """Yield the task's draws in evaluation: the model, then the generated draws, then after each gradient step."""
        yield InnerStep([AmortizedTask({}, self._own_head(meta))], None)
        yield from self.draw_task(meta, support, self._posterior(meta, support), steps, self.eval_num_samples)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the queries' negative log-likelihood with the divergence from the prior, and the report."""
        posterior = self._posterior(meta, task.support)
        draws, losses = run_through(self.draw_task(meta, task.support, posterior, self.inner_steps, self.num_samples))
        samples = self.query_samples(meta, draws, task.query_x)
        nll = self.predictive_nll(samples, task.query_y, task.query_mask)
        divergence = gaussian_kl(posterior, self._prior(meta))
        loss = nll + self.kl_weight / task.query_y.shape[0] * divergence
        diagnostics = {"nll": nll, "kl": divergence, "ridge_penalty": meta["log_penalty"].exp()}
        output = mean_output(self.likelihood, samples)
        return loss, TaskResult(loss, output[None], losses, diagnostics=diagnostics)

    def draw_task(
        self, meta: MetaParameters, support: Support, posterior: DiagonalGaussian, steps: int, count: int
    ) -> Iterator[InnerStep]:
        """Yield ``count`` draws of the task's model after 1, ..., ``steps`` steps; the first generates and solves.

        Training and evaluation both call this: override it, not `inner_loop`, to change how tasks adapt.
        """
        draws, losses = [], []
        for _ in range(count):
            drawn = {n: m + posterior.log_std[n].exp() * torch.randn_like(m) for n, m in posterior.mean.items()}
            head, loss = self._solved(meta, drawn, support)
            draws.append(AmortizedTask(drawn, head))
            losses.append(loss)
        yield InnerStep(draws, torch.stack(losses).mean())
        states = [self.inner_optimizer.init(_point(draw)) for draw in draws] if steps > 1 else []
        for step in range(steps - 1):
            refined = [
                self._refined(meta, draw, support, state, step) for draw, state in zip(draws, states, strict=True)
            ]
            draws, losses, states = map(list, zip(*refined, strict=True))
            yield InnerStep(draws, torch.stack(losses).mean())

    def query_samples(self, meta: MetaParameters, state: list[AmortizedTask], x: Any) -> Samples:
        """Return draws of outputs, ``[draws, query, ...]``; for classes ``head_samples`` for each draw of a body."""
        outputs, spreads = [], []
        for draw in state:
            features = self._features(meta, draw.body, x)
            if isinstance(draw.head, Tensor):
                output, variance = features @ draw.head, features.new_zeros(features.shape[0])
            else:
                output, variance = features @ draw.head.weight, draw.head.variance(features)
            variance = variance[:, None].expand_as(output)
            if self.likelihood == "gaussian":
                outputs.append(output)
                spreads.append(variance * self.noise_variance(meta, output))
            else:
                noise = torch.randn(self.head_samples, *output.shape, dtype=output.dtype, device=output.device)
                drawn = output + noise * (variance + 1e-12).sqrt() * meta["log_head_std"].exp()
                outputs += list(meta["log_scale"].exp() * drawn + meta["shift"])
        stacked = torch.stack(outputs)
        return self.with_noise(meta, stacked, torch.stack(spreads) if spreads else None)

    def _prior(self, meta: MetaParameters) -> DiagonalGaussian:
        mean = {name: meta[f"model.{name}"] for name in self.generated_names}
        return DiagonalGaussian(mean, {name: meta[f"log_std.{key_of(name)}"] for name in self.generated_names})

    def _posterior(self, meta: MetaParameters, support: Support) -> DiagonalGaussian:
        prior = self._prior(meta)
        elements = torch.cat(
            [self._features(meta, {}, support.x)[:, :-1], self._one_hot_targets(meta, support.y)], dim=1
        )
        elements = elements.to(meta["log_penalty"].dtype)
        offsets, ratios = call_with(self.encoder, module_part(meta, "encoder"), elements).chunk(2)
        sizes = [value.numel() for value in prior.mean.values()]
        mean, log_std = {}, {}
        for (name, value), offset, ratio in zip(
            prior.mean.items(), offsets.split(sizes), ratios.split(sizes), strict=True
        ):
            mean[name] = value + offset.view_as(value)
            log_std[name] = prior.log_std[name] + ratio.view_as(value)
        return DiagonalGaussian(mean, log_std)

    def _features(self, meta: MetaParameters, body: Vector, x: Any) -> Tensor:
        """Return the head's inputs, with a constant for its bias: ``[examples, features + 1]``."""
        parameters = {**self.model_parameters(meta), **body}
        features, _ = features_and_output(self.model, self.head_name, "AmortizedMAML", self.call_model, parameters, x)
        features = features.to(self._solver_dtype(meta))
        return torch.cat([features, features.new_ones(features.shape[0], 1)], dim=1)

    def _own_head(self, meta: MetaParameters) -> Tensor:
        prefix = f"{self.head_name}." if self.head_name else ""
        # A frozen head is not among the meta-parameters.
        parameters = {**dict(self.model.named_parameters()), **self.model_parameters(meta)}
        weight, bias = parameters[f"{prefix}weight"].mT, parameters.get(f"{prefix}bias")
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias
        return torch.cat([weight, bias[None]]).to(self._solver_dtype(meta))

    def _one_hot_targets(self, meta: MetaParameters, y: Tensor) -> Tensor:
        return target_rows(self.likelihood, y, self.outputs).to(self._solver_dtype(meta))

    def _solver_dtype(self, meta: MetaParameters) -> torch.dtype:
        return single_or_double(meta["log_penalty"].dtype)  # half precision cannot be solved in

    def _solved(self, meta: MetaParameters, body: Vector, support: Support) -> tuple[RidgeSolution, Tensor]:
        features, targets = self._features(meta, body, support.x), self._one_hot_targets(meta, support.y)
        solution = ridge(features, targets, meta["log_penalty"].exp(), self._own_head(meta))
        return solution, (features @ solution.weight - targets).square().mean()

    def _refined(
        self, meta: MetaParameters, draw: AmortizedTask, support: Support, state: Any, step: int
    ) -> tuple[AmortizedTask, Tensor, Any]:
        """Take one step of gradient descent; return the draw, the loss before it, and the update rule's state."""

        def support_loss(adapted: Vector) -> Tensor:
            body = {name: value for name, value in adapted.items() if name}
            output = self._features(meta, body, support.x) @ adapted[""]
            if self.likelihood != "gaussian":
                output = meta["log_scale"].exp() * output + meta["shift"]
            return -self.summed_log_likelihood(meta, output, support.y, None)

        start = _point(draw)
        slopes, loss = grad_and_value(support_loss)(start)
        rates = dict.fromkeys(start, self.step_size(meta, support.y, None))
        end, state = self.inner_optimizer.update(start, slopes, state, rates, step)
        body = {name: value for name, value in end.items() if name}
        solution, _ = self._solved(meta, body, support)  # for its variance, under the refined body
        return AmortizedTask(body, solution._replace(weight=end[""])), loss, state


def _point(draw: AmortizedTask) -> Vector:
    """What refinement adapts: the body's parameters by name, and the head under no name."""
    assert isinstance(draw.head, RidgeSolution)
    return {**draw.body, "": draw.head.weight}


def _generated_names(model: nn.Module, generate: str | Sequence[str] | None, head_name: str) -> tuple[str, ...]:
    prefix = f"{head_name}." if head_name else ""
    parameters = dict(model.named_parameters())
    if generate is not None:
        chosen = adapted_names(model, generate)
    else:
        chosen = adapted_names(model, "all")
        if sum(parameters[n].numel() for n in chosen if not n.startswith(prefix)) > _GENERATED_AT_MOST:
            chosen = tuple(name for name in chosen if parameters[name].ndim < 2)
    kept = tuple(name for name in chosen if not name.startswith(prefix))
    if not kept:
        raise ValueError(
            f"generate={generate!r} leaves no parameter but the head's, which is solved for: name some of "
            f"{[name for name in parameters if not name.startswith(prefix)]}"
        )
    return kept


def _check_encoder(encoder: nn.Module, elements: int, size: int) -> None:
    check_no_statistics(encoder, "encoder")
    like = next(encoder.parameters(), torch.zeros(()))
    example = torch.randn(3, elements, generator=torch.Generator().manual_seed(0)).to(like)
    encoder = copy.deepcopy(encoder).eval()  # dropout would differ between calls, normalization note the example
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            output = encoder(example)
            turned = encoder(example.flip(0))
        except RuntimeError as error:
            raise ValueError(f"encoder cannot take a set of shape [examples, {elements}]: {error}") from error
    if output.shape != (size,):
        raise ValueError(
            f"encoder gives {tuple(output.shape)} for one set, but the generated parameters need ({size},): a mean "
            "and a log standard deviation each; change its last layer, or generate other parameters"
        )
    if not torch.allclose(output, turned, rtol=1e-3, atol=1e-5):
        raise ValueError("encoder depends on the order of the set: pool over its examples, with a mean for instance")
