"""Conditional neural processes.

Paper: Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende, Eslami, "Conditional Neural Processes",
ICML 2018, arXiv 1807.01613.

A network h encodes each support example, their mean represents the task, and a network g decodes it at an input
(equations 1 to 3):

    r_i = h(x_i, y_i),        r = mean of r_i over S,        (μ, σ) = g(x, r),        p(y | x, S) = N(y; μ, σ²)

The meta-loss is the negative log-likelihood under S of observed and unobserved examples (equation 4), here S ∪ Q.

Differences from the paper:
- h and g see the features f(x) of the model's body, and μ is added to the model's output. With ``nn.Linear`` as the
  model, f(x) is x, and a linear mean function remains.
- σ = 0.1 + 0.9 softplus(·) as in the authors' code; the paper has no bound. ``min_std`` changes it.
- The support set has the size that the data module gives; the authors draw its size anew in each step.
- For classes, one mean over all examples and one-hot labels; the paper takes a mean for each class.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_meta import arguments
from lightning_meta.algorithms.processes.neural_process import Inputs, NeuralProcess, mean_of_set
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.execution.functional import call_with
from lightning_meta.learners import module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples
from lightning_meta.models.mlp import MLP


class CNP(NeuralProcess):
    """Conditional neural process (Garnelo et al., 2018): the mean of encoded examples represents a task.

    Args:
        model: The model of features and shared mean, see `NeuralProcess`; it must end in an `nn.Linear`.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        hidden: The size of r and of hidden layers.
        layers: The hidden layers of h and of g.
        **options: As in `NeuralProcess` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the loss is not a likelihood, or the model does not end in an
            `nn.Linear`.
        TypeError: If an argument is unknown, or the model has layers that cannot run per task.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import CNP, MLP
        >>> task = CNP(MLP(), nn.MSELoss()).adapt(torch.randn(10, 1), torch.randn(10, 1))
        >>> task.predict(torch.randn(5, 1)).aleatoric.shape  # a variance for each query
        torch.Size([5, 1])
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        hidden: int = 128,
        layers: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        arguments.check_count("hidden", hidden)
        arguments.check_count("layers", layers)
        like = self.head_weight
        self.encoder = MLP(self.features + self.outputs, hidden, [hidden] * layers).to(like)
        self.decoder = MLP(self.features + hidden, self.decoded, [hidden] * layers).to(like)

    def encode(self, meta: MetaParameters, known: Inputs, support: Support) -> Tensor:
        """Return r, ``[hidden]``."""
        encoded = call_with(self.encoder, module_part(meta, "encoder"), self.pairs(known, support.y))
        return mean_of_set(encoded, support.mask)

    def decode(self, meta: MetaParameters, state: Tensor, asked: Inputs) -> Samples:
        """Return one Gaussian, or row of logits, for each query."""
        same = state.expand(asked.features.shape[0], -1)  # [query, hidden]
        decoded = call_with(self.decoder, module_part(meta, "decoder"), torch.cat([asked.features, same], dim=1))
        return self.distribution(decoded[None], asked)
