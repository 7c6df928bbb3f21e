"""Transformer neural processes with independent predictions, TNP-D.

Paper: Nguyen, Grover, "Transformer Neural Processes: Uncertainty-Aware Meta Learning Via Sequence Modeling", ICML 2022,
arXiv 2207.04179.

A transformer without positions takes a token for each support example, (x, y), and for each query, (x, 0). All attend
to the support tokens alone, so that the order of the support set and the other queries do not matter. A network of a
query's last token gives mean and standard deviation:

    (μ, σ) = g(transformer(x, 0; S)),        p(y_Q | x_Q, S) = Π N(y; μ, σ²)

The meta-loss is the negative log-likelihood of the queries. TNP-A and TNP-ND, whose queries depend on each other, are
not here: a learner's predictions must not depend on which queries come together.

Differences from the paper:
- Tokens see the features f(x) of the model's body, and μ is added to the model's output. With ``nn.Linear`` as the
  model, f(x) is x, and a linear mean function remains.
- σ = 0.05 + 0.95 softplus(·), which the authors' code has as an option (``bound_std``); its default is exp(·).
- A query does not attend to itself, as in the authors' code; the residual connection keeps what it is.
- Support tokens are computed once a task and kept for all queries; the values are those of one masked sequence.
- Sizes are smaller by default: 3 layers, where the authors take 6. No dropout, as in their configurations.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta import arguments
from lightning_meta.algorithms.processes.neural_process import Inputs, NeuralProcess
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.execution.functional import call_with
from lightning_meta.learners import module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples
from lightning_meta.models.mlp import MLP
from lightning_meta.models.set_transformer import SetTransformer


class SupportTokens(NamedTuple):
    """The support tokens before each layer, ``[support, hidden]``, and their mask, ``[support]``."""

    by_layer: list[Tensor]
    mask: Tensor | None


class TNP(NeuralProcess):
    """Transformer neural process with independent predictions (TNP-D; Nguyen and Grover, 2022).

    Args:
        model: The model of features and shared mean, see `NeuralProcess`; it must end in an `nn.Linear`.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        hidden: The size of a token; hidden layers within the transformer are twice as large.
        layers: The layers of the transformer.
        embedding_layers: Hidden layers of the network that makes tokens.
        heads: Heads of the attention, a divisor of ``hidden``.
        min_std: As in `NeuralProcess`.
        score_support: As in `NeuralProcess`.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the loss is not a likelihood, or the model does not end in an
            `nn.Linear`.
        TypeError: If an argument is unknown, or the model has layers that cannot run per task.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        hidden: int = 64,
        layers: int = 3,
        embedding_layers: int = 3,
        heads: int = 4,
        min_std: float = 0.05,
        score_support: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, min_std=min_std, score_support=score_support, **options)
        arguments.check_count("hidden", hidden)
        arguments.check_count("layers", layers)
        arguments.check_count("embedding_layers", embedding_layers)
        like = self.head_weight
        elements = self.features + self.outputs
        self.transformer = SetTransformer(elements, hidden, embedding_layers, layers, heads).to(like)
        self.predictor = MLP(hidden, self.decoded, [2 * hidden]).to(like)

    def encode(self, meta: MetaParameters, known: Inputs, support: Support) -> SupportTokens:
        """Return the support tokens that queries attend to."""
        part = module_part(meta, "transformer")
        _, by_layer = call_with(self.transformer, part, self.pairs(known, support.y), support.mask)
        return SupportTokens(by_layer, support.mask)

    def decode(self, meta: MetaParameters, state: SupportTokens, asked: Inputs) -> Samples:
        """Return one Gaussian, or row of logits, for each query."""
        unknown = torch.cat([asked.features, torch.zeros_like(asked.mean)], dim=1)  # [query, features + outputs]
        part = module_part(meta, "transformer")
        tokens, _ = call_with(self.transformer, part, unknown, state.mask, state.by_layer)
        decoded = call_with(self.predictor, module_part(meta, "predictor"), tokens)
        return self.distribution(decoded[None], asked)
