"""Deep kernel transfer: a Gaussian process whose kernel all tasks share.

Paper: Patacchiola, Turner, Crowley, O'Boyle, Storkey, "Bayesian Meta-Learning for the Few-Shot Setting via Deep
Kernels", NeurIPS 2020, arXiv 1910.05199.

The model embeds examples, f. A task's function is a draw of a Gaussian process with mean m and kernel k on embeddings;
model, kernel, m and the noise σ² are meta-learned, and no parameter belongs to a task. Training maximizes the marginal
likelihood of support and query targets together (equation 3), per example:

    −1/n log N(y; m 1, K + σ² I),      K_ij = k(f(x_i), f(x_j)),      y the n targets of S ∪ Q

A task is adapted to by conditioning on its support set (equation 4), with residuals r = y_S − m:

    E f(x) = m + k_xS (K_SS + σ² I)⁻¹ r,      Var f(x) = k_xx − k_xS (K_SS + σ² I)⁻¹ k_Sx

Classes are one-versus-rest regressions on labels 1 and −1 (section 3.3). In the paper the class of the largest mean
wins.

Differences from the paper:
- Class probabilities: the paper takes the sigmoid of each mean for its decisions, and the authors' code the softmax of
  scaled means for calibration. Here they are the mean softmax of scaled draws of the classes' functions, with the same
  draws for each class; nearly always the class of the largest mean has the largest. The scale is learned with the
  kernel, by the queries' likelihood given the support set, with everything else held fixed; the authors fit it after
  training.
- All classes share the kernel's and the noise's parameters, and one Cholesky factor, so that a task may have any number
  of classes; in the authors' code each class number has its own.
- The noise on the labels of classes is learned; the authors' code holds its variance at 0.1.
- "bn_cosine": embeddings are standardized by means and deviations over the support set, in training and tests, without
  a learned scale and shift. The authors have a batch normalization layer, with running statistics in tests.
- The spectral mixture is a sum of products over features, as its authors define it; GPyTorch, which the authors use,
  multiplies sums. Its frequencies start low, in proportion to 1/√features.
- A hundred-thousandth of the kernel's mean variance is added to the noise, for single precision.
- ``meta_loss="predictive"`` minimizes −log p(y_Q | x_Q, S) in place of the joint likelihood, query by query.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.execution.functional import call_with
from lightning_meta.inner.solvers.affine_ridge import centered
from lightning_meta.inner.solvers.gaussian_process import (
    Kernel,
    condition,
    evidence_and_posterior,
    flat,
    posterior,
    presence,
)
from lightning_meta.learners import PosteriorLearner, SupportClassLearner, module_part
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples, mean_output
from lightning_meta.models.feature_size import feature_size
from lightning_meta.models.features import single_or_double
from lightning_meta.models.kernels import KernelName, make_kernel

MetaLoss = Literal["marginal", "predictive"]


# Of each class's function, to learn the scale of logits; the same always.
_TRAINING_DRAWS = 64


class ConditionedProcess(NamedTuple):
    """A Gaussian process conditioned on one task's support set.

    Attributes:
        features: The support set's embeddings, as the kernel gets them, ``[support, features]``.
        factor: The Cholesky factor L of ``K_SS + σ² I``, ``[support, support]``.
        whitened: ``L⁻¹ (y_S − m)``, ``[support, ...]`` with the shape of a target, or ``[support, ways]``.
        present: 1 where an example counts, 0 for padding, ``[support]``.
        counts: The number of support examples of each class, ``[ways]``; of no class for real targets.
        moments: Mean and deviation of the embeddings by which "bn_cosine" standardizes.
    """

    features: Tensor
    factor: Tensor
    whitened: Tensor
    present: Tensor
    counts: Tensor
    moments: tuple[Tensor, ...]


class DKT(PosteriorLearner, SupportClassLearner):
    """Deep kernel transfer (Patacchiola et al., 2020): a Gaussian process in closed form, for any number of ways.

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: ``nn.MSELoss()`` is regression, of each number of a target by itself; ``nn.CrossEntropyLoss()`` and
            None are classification.
        kernel: "linear", "rbf", "cosine", "bn_cosine" or "spectral_mixture". None: "rbf" for regression, "cosine" for
            classes. "bn_cosine" magnifies the rounding of half precision, as it divides by deviations over a few
            examples.
        meta_loss: "marginal", the negative log marginal likelihood of both sets, or "predictive", that of the queries
            given the support set.
        eval_num_samples: For classes, draws of their functions, the same for all queries and classes; rounded up to a
            multiple of the ways.
        num_features: The number of features that the model gives, which "spectral_mixture" needs; None: the outputs of
            its last linear layer.
        **options: As in `PosteriorLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, or the loss is another one.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import DKT
        >>> learner = DKT(nn.Linear(3, 8), nn.MSELoss())
        >>> task = learner.adapt(torch.randn(5, 3), torch.randn(5, 1))
        >>> task.predict(torch.randn(7, 3)).epistemic.shape  # the process's variance, without noise
        torch.Size([7, 1])
    """

    diagnostic_names = ("nll",)

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        kernel: KernelName | None = None,
        meta_loss: MetaLoss = "marginal",
        eval_num_samples: int = 32,
        num_features: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        if self.likelihood == "bernoulli":
            raise ValueError(f"loss_fn={loss_fn!r}: DKT takes nn.MSELoss(), or nn.CrossEntropyLoss() with two classes")
        self.classifies = self.likelihood == "categorical"
        self.kernel_name = ("cosine" if self.classifies else "rbf") if kernel is None else kernel
        arguments.check_choice("kernel", self.kernel_name, KernelName)
        arguments.check_choice("meta_loss", meta_loss, MetaLoss)
        arguments.check_count("eval_num_samples", eval_num_samples)
        self.meta_loss = meta_loss
        self.eval_num_samples = eval_num_samples
        self.num_features = num_features
        if kernel == "spectral_mixture":
            self.num_features = feature_size(model, num_features, "learns frequencies for each feature")
        like = next(model.parameters(), torch.zeros(()))
        self.kernel = make_kernel(self.kernel_name, self.num_features).to(like)
        self.mean = nn.Parameter(like.new_zeros(()))
        # For classes: the noise on labels 1 and −1, and what turns functions into logits.
        self.log_label_std = nn.Parameter(like.new_tensor(-1.0)) if self.classifies else None
        self.log_scale = nn.Parameter(like.new_tensor(math.log(5.0))) if self.classifies else None

    def prepare_support(self, support: Support) -> Support:
        """Return the support set, for classes with one-hot labels."""
        return super().prepare_support(support) if self.classifies else support

    def output_shape(self, support: Support) -> torch.Size:
        """Return the shape of a target, for classes ``[ways]``."""
        return super().output_shape(support) if self.classifies else support.y.shape[2:]

    def adapt_task(self, meta: MetaParameters, support: Support) -> ConditionedProcess:
        """Return the process conditioned on the support set."""
        features = self._features(meta, support.x)
        moments = self._moments(features, support.mask)
        features = _standardized(features, moments)
        present = presence(features, support.mask)
        targets, counts = self._support_targets(support, features.dtype)
        residual = self._residual(meta, targets, present)
        factor, whitened = condition(self._kernel(meta), features, self._target_noise(meta), residual, present)
        return ConditionedProcess(features, factor, whitened.view_as(targets), present, counts, moments)

    def query_samples(self, meta: MetaParameters, state: ConditionedProcess, x: Any) -> Samples:
        """Return the posterior of real targets, ``[1, query, ...]``, or draws of logits, ``[draws, query, ways]``."""
        features = _standardized(self._features(meta, x), state.moments)
        given = state.features, state.factor, flat(state.whitened), state.present
        mean, variance = posterior(self._kernel(meta), *given, features)
        mean = self._at(meta, mean).reshape(-1, *state.whitened.shape[1:])  # [query, ...]
        if not self.classifies:
            spread = variance.reshape(-1, *[1] * (mean.ndim - 1)).expand_as(mean)
            return self.with_noise(meta, mean[None], spread[None])
        draws = _even_draws(self.eval_num_samples, mean.shape[1])
        return self._class_samples(meta, mean, variance, state.counts, draws)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the chosen negative log-likelihood, and the report.

        For classes, "marginal" adds that of the queries, from which the scale alone learns. The two sets are passed
        through the model separately, as in evaluation, for batch normalization.
        """
        sets = self._features(meta, task.support_x), self._features(meta, task.query_x)
        moments = self._moments(sets[0], task.support_mask)
        features = torch.cat([_standardized(each, moments) for each in sets])
        masks = task.support_mask, task.query_mask
        present = torch.cat([presence(each, mask) for each, mask in zip(sets, masks, strict=True)])
        targets, counts = self._support_targets(task.support, features.dtype)
        targets = torch.cat([targets, self._query_targets(task.query_y, targets)])  # [examples, ...]
        evidence, mean, variance = evidence_and_posterior(
            self._kernel(meta),
            features,
            self._target_noise(meta),
            self._residual(meta, targets, present),
            present,
            task.support_y.shape[0],
        )
        evidence = evidence / present.sum()  # [outputs]
        mean = self._at(meta, mean).reshape(-1, *targets.shape[1:])  # [query, ...]
        if self.classifies:
            output, nll = self._class_nll(meta, mean, variance, counts, task)
            classes = (counts > 0).to(evidence.dtype)
            joint = -(evidence * classes).sum() / classes.sum()
            # Only the scale learns from the likelihood of classes.
            loss = joint + nll if self.meta_loss == "marginal" else nll
        else:
            spread = variance.reshape(-1, *[1] * (mean.ndim - 1)).expand_as(mean)
            output = mean
            nll = self.predictive_nll(self.with_noise(meta, mean[None], spread[None]), task.query_y, task.query_mask)
            loss = -evidence.mean() if self.meta_loss == "marginal" else nll
        return loss, TaskResult(loss, output[None], loss.new_zeros(0), diagnostics={"nll": nll})

    def _class_nll(
        self, meta: MetaParameters, mean: Tensor, variance: Tensor, counts: Tensor, task: Episode
    ) -> tuple[Tensor, Tensor]:
        """Return logits of mean probabilities, ``[query, ways]``, and the queries' negative log-likelihood."""
        if self.meta_loss == "marginal":
            mean, variance = mean.detach(), variance.detach()
        samples = self._class_samples(meta, mean, variance, counts, _draws_of_columns(_TRAINING_DRAWS, mean.shape[1]))
        return mean_output(self.likelihood, samples), self.predictive_nll(samples, task.query_y, task.query_mask)

    def _class_samples(
        self, meta: MetaParameters, mean: Tensor, variance: Tensor, counts: Tensor, normal: NDArray[np.float64]
    ) -> Samples:
        """Return draws of logits, ``[draws, query, ways]``; -inf for classes without support examples."""
        draws = torch.as_tensor(normal).to(mean)
        # The small constant keeps the derivative of the root finite if the variance is 0.
        deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny ** 0.5).sqrt()
        functions = mean + deviation[:, None] * draws[:, None]
        return Samples(without_absent(meta["log_scale"].exp() * functions, counts))

    def _features(self, meta: MetaParameters, x: Any) -> Tensor:
        features = self.embeddings(meta, x, self.num_features)
        return features.to(single_or_double(self.mean.dtype))  # half precision cannot be solved in

    def _moments(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Return mean and deviation over a support set, for "bn_cosine"."""
        if self.kernel_name != "bn_cosine":
            return ()
        offsets, mean = centered(features, mask)
        variance = offsets.square().sum(0) / (features.shape[0] if mask is None else mask.sum())
        return mean, (variance + 1e-5).sqrt()

    def _support_targets(self, support: Support, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the process's targets and the number of examples of each class."""
        if not self.classifies:
            return support.y.to(dtype), support.y.new_zeros(0)
        one_hot = self.one_hot(support, dtype)  # [support, ways]
        return 2 * one_hot - 1, one_hot.sum(0)

    def _query_targets(self, y: Tensor, like: Tensor) -> Tensor:
        if not self.classifies:
            return y.to(like.dtype)
        # Not F.one_hot, which cannot be vectorized.
        return 2 * (y[:, None] == torch.arange(like.shape[1], device=y.device)).to(like.dtype) - 1

    def _residual(self, meta: MetaParameters, targets: Tensor, present: Tensor) -> Tensor:
        return (flat(targets) - meta["mean"]) * present[:, None]  # [examples, outputs]

    def _at(self, meta: MetaParameters, residual: Tensor) -> Tensor:
        return residual + meta["mean"]

    def _target_noise(self, meta: MetaParameters) -> Tensor:
        if self.classifies:
            return (2 * meta["log_label_std"]).exp()
        return self.noise_variance(meta, meta["mean"])

    def _kernel(self, meta: MetaParameters) -> Kernel:
        return functools.partial(call_with, self.kernel, module_part(meta, "kernel"))


# A trace takes the draws as constants, as NumPy's generator cannot be traced. Torch gives the decorator no types.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _draws_of_columns(samples: int, ways: int) -> NDArray[np.float64]:
    """Return draws ``[samples, ways]``, of which a class's do not depend on how many others there are."""
    columns = [np.random.default_rng([0, way]).standard_normal(samples) for way in range(ways)]
    return np.stack([(column - column.mean()) / column.std() for column in columns], axis=1)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _even_draws(samples: int, ways: int) -> NDArray[np.float64]:
    """Return the same draws always, so that predictions do not depend on a random state.

    Each class has the same draws in another order: otherwise some class numbers would be more probable than others.

    Returns:
        ``[draws, ways]``, with the number of samples rounded up to a multiple of the ways.
    """
    some = np.random.default_rng(0).standard_normal((math.ceil(samples / ways), ways))
    return np.concatenate([np.roll(some, shift, axis=1) for shift in range(ways)])


def _standardized(features: Tensor, moments: tuple[Tensor, ...]) -> Tensor:
    return (features - moments[0]) / moments[1] if moments else features
