"""`NeuralProcess`: the base of learners whose networks map a support set to a predictive distribution."""

from abc import abstractmethod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta import arguments
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult
from lightning_meta.execution.linear_head import features_and_output, linear_head
from lightning_meta.learners import TaskLearner
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.losses import required_likelihood, target_rows
from lightning_meta.likelihoods.predictive import Samples, log_likelihood, mean_output


class Inputs(NamedTuple):
    """What the networks know of inputs: features ``[examples, features]`` and the model's output, its shared mean."""

    features: Tensor
    mean: Tensor


class NeuralProcess(TaskLearner):
    """Base of neural processes: the support set is encoded, and decoded at an input; no step of gradient descent.

    The model must end in an `nn.Linear`, the head, as every model for as many outputs does. The head's inputs are the
    features of x that the networks get (for ``nn.Linear(1, 1)``, x itself). The networks' means are added to the
    model's output, a mean function that all tasks share. So the networks have their sizes before any data are seen.

    The loss names the likelihood, as in `PosteriorLearner`. With ``nn.MSELoss`` each target has a mean and a standard
    deviation ``min_std + (1 − min_std) softplus(·)``. With ``nn.CrossEntropyLoss`` labels are encoded as one-hot rows,
    and the outputs are logits; with ``nn.BCEWithLogitsLoss`` outputs are logits too.

    Args:
        model: The model of features and shared mean.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        min_std: The least standard deviation of a Gaussian likelihood, in the targets' units, below 1.
        score_support: Whether the meta-loss is over the support and query sets together; False: the query set alone.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the loss is not a likelihood, or the model does not end in an
            `nn.Linear`.
        TypeError: If an argument is unknown, or the model has layers that cannot run per task.
    """

    ignores_labels = False

    has_noise = True
    diagnostic_names: tuple[str, ...] = ("nll",)

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        min_std: float = 0.1,
        score_support: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        arguments.check_rate("min_std", min_std)
        arguments.check_fraction("min_std", min_std)
        self.likelihood = required_likelihood(self.loss_fn)
        self.min_std = min_std
        self.score_support = score_support
        self.head_name, head = linear_head(model, f"{type(self).__name__} reads the inputs of")
        self.features = head.in_features
        self.outputs = head.out_features
        self.decoded = 2 * self.outputs if self.likelihood == "gaussian" else self.outputs

    @abstractmethod
    def encode(self, meta: MetaParameters, known: Inputs, support: Support) -> Any:
        """Return the state of a task from its support set.

        Args:
            meta: The learner's trainable parameters by name.
            known: What the networks know of the support inputs.
            support: The support set.
        """

    @abstractmethod
    def decode(self, meta: MetaParameters, state: Any, asked: Inputs) -> Samples:
        """Return the predictive distribution at inputs, of which ``asked`` is known, ``[query, ...]``."""

    def adapt_task(self, meta: MetaParameters, support: Support) -> Any:
        """Return the state that `encode` gives."""
        return self.encode(meta, self.inputs(meta, support.x), support)

    def query_samples(self, meta: MetaParameters, state: Any, x: Any) -> Samples:
        """Return the predictive distribution, one or more Gaussians or rows of logits for each query."""
        return self.decode(meta, state, self.inputs(meta, x))

    def query_output(self, meta: MetaParameters, state: Any, x: Any) -> Tensor:
        """Return the predictive mean ``[query, outputs]``."""
        return mean_output(self.likelihood, self.query_samples(meta, state, x))

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the mean negative log-likelihood of the scored examples, and the report."""
        known, asked = self.inputs(meta, task.support_x), self.inputs(meta, task.query_x)
        loss, _, result = self.scored(meta, self.encode(meta, known, task.support), known, asked, task)
        return loss, result

    def inputs(self, meta: MetaParameters, x: Any) -> Inputs:
        """Return features and shared means of inputs."""
        parameters = self.model_parameters(meta)
        features, mean = features_and_output(
            self.model, self.head_name, type(self).__name__, self.call_model, parameters, x
        )
        return Inputs(self.in_full(features), self.in_full(mean))

    def pairs(self, known: Inputs, y: Tensor) -> Tensor:
        """Return features and targets of examples side by side, ``[examples, features + outputs]``."""
        targets = target_rows(self.likelihood, y, self.outputs)
        return torch.cat([known.features, targets.to(known.features.dtype)], dim=1)

    def distribution(self, decoded: Tensor, asked: Inputs) -> Samples:
        """Return the predictive distribution for a decoder's outputs, ``[samples, query, decoded]``."""
        decoded = self.in_full(decoded)
        if self.likelihood != "gaussian":
            return Samples(asked.mean + decoded)
        offset, width = decoded.chunk(2, dim=2)  # [samples, query, outputs]
        std = self.min_std + (1 - self.min_std) * F.softplus(width)
        return Samples(asked.mean + offset, std.square())

    def scored(
        self, meta: MetaParameters, state: Any, known: Inputs, asked: Inputs, task: Episode
    ) -> tuple[Tensor, Tensor, TaskResult]:
        """Return the negative log-likelihood, a mean over draws and scored examples, their number, and the report."""
        samples = self.decode(meta, state, asked)
        values, mask = self._nll(samples, task.query_y), _ones(asked, task.query_mask)
        nll = torch.where(mask, values, 0).sum() / mask.sum()
        loss = nll
        if self.score_support:
            own, own_mask = self._nll(self.decode(meta, state, known), task.support_y), _ones(known, task.support_mask)
            values, mask = torch.cat([own, values]), torch.cat([own_mask, mask])
            loss = torch.where(mask, values, 0).sum() / mask.sum()
        output = mean_output(self.likelihood, samples)
        return loss, mask.sum(), TaskResult(loss, output[None], loss.new_zeros(0), diagnostics={"nll": nll})

    def _nll(self, samples: Samples, y: Tensor) -> Tensor:
        return -log_likelihood(self.likelihood, samples, y).mean(0)  # [examples]

    @property
    def head_weight(self) -> Tensor:
        """The weight of the model's head, which tells the networks' precision and device."""
        weight = self.model.get_submodule(self.head_name).weight
        assert isinstance(weight, Tensor)
        return weight

    def in_full(self, values: Tensor) -> Tensor:
        """Return values in the precision of the head's weights, for autocast gives less."""
        return values.to(self.head_weight.dtype)


def mean_of_set(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean ``[features]`` of values ``[examples, features]`` over the examples that the mask includes."""
    if mask is None:
        return values.mean(0)
    return torch.where(mask[:, None], values, 0).sum(0) / mask.sum()


def _ones(inputs: Inputs, mask: Tensor | None) -> Tensor:
    size = inputs.mean.shape[0]
    return torch.ones(size, dtype=torch.bool, device=inputs.mean.device) if mask is None else mask
