"""Attentive neural processes, and neural processes without attention.

Papers: Kim, Mnih, Schwarz, Garnelo, Eslami, Rosenbaum, Vinyals, Teh, "Attentive Neural Processes", ICLR 2019, arXiv
1901.05761; Garnelo, Schwarz, Rosenbaum, Viola, Rezende, Eslami, Teh, "Neural Processes", 2018, arXiv 1807.01622.

A deterministic path gives each input its own representation r(x): the support examples, encoded and mixed by
self-attention, are the values of a cross-attention with keys k(x_i) and query k(x). A latent path gives the whole task
a variable z, whose distribution depends on the mean of a second encoding of a set:

    q(z | S) = N(m(S), diag s²(S)),        p(y | x, S, z) = N(μ, σ²),  (μ, σ) = g(x, r(x), z)

The meta-loss is the negative evidence lower bound of the scored examples (equation 3), with T = S ∪ Q:

    −(1 / |T|) (E_{q(z | T)} log p(y_T | x_T, S, z) − KL(q(z | T) ‖ q(z | S)))

Predictions draw z from q(z | S); the draws differ by what the support set leaves open, the epistemic uncertainty.

Differences from the papers:
- The networks see the features f(x) of the model's body, and μ is added to the model's output. With ``nn.Linear`` as
  the model, f(x) is x, and a linear mean function remains.
- σ = 0.1 + 0.9 softplus(·) and s = 0.1 + 0.9 sigmoid(·) as in the authors' code; the paper has no bounds. ``min_std``
  and ``max_latent_std`` change them.
- Self-attention is one layer of a transformer by default; the authors' code leaves it out.
- The support set has the size that the data module gives; the authors draw its size anew in each step.
- ``attention=False`` is the neural process that Kim et al. compare with: the mean of encoded examples takes the place
  of r(x). That of Garnelo et al. has no deterministic path at all.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_meta import arguments
from lightning_meta.algorithms.processes.neural_process import Inputs, NeuralProcess, mean_of_set
from lightning_meta.episodes import Episode, MetaParameters, Support, TaskResult, joined_sets
from lightning_meta.execution.functional import call_with
from lightning_meta.inner.variational.gaussian import DiagonalGaussian, gaussian_kl
from lightning_meta.learners import module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.likelihoods.predictive import Samples
from lightning_meta.models.mlp import MLP
from lightning_meta.models.set_transformer import MultiheadAttention, SetTransformer


class Representation(NamedTuple):
    """A task's state.

    Attributes:
        keys: ``[support, hidden]``.
        values: The encoded support examples, ``[support, hidden]``.
        mask: ``[support]`` or None.
        latents: Draws of z, ``[draws, latents]``.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    latents: Tensor


class AttentiveNP(NeuralProcess):
    """Attentive neural process (Kim et al., 2019): cross-attention to the support set, and a latent variable.

    Args:
        model: The model of features and shared mean, see `NeuralProcess`; it must end in an `nn.Linear`.
        loss_fn: Names the likelihood; None: ``nn.CrossEntropyLoss()``.
        hidden: The size of representations and of hidden layers.
        layers: The hidden layers of each network.
        heads: Heads of the attention, a divisor of ``hidden``.
        attention: Whether queries attend to the support set; False: a neural process, without any attention.
        attention_layers: Layers of self-attention in each path.
        latents: The size of z.
        num_samples: Draws of z in training.
        eval_num_samples: Draws of z in `adapt` and evaluation.
        kl_weight: The weight of the divergence; 1 in the paper.
        max_latent_std: The largest standard deviation of z; the least is a tenth of it.
        **options: As in `NeuralProcess` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, the loss is not a likelihood, or the model does not end in an
            `nn.Linear`.
        TypeError: If an argument is unknown, or the model has layers that cannot run per task.
    """

    is_stochastic = True

    diagnostic_names = ("nll", "kl")

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 4,
        attention: bool = True,
        attention_layers: int = 1,
        latents: int = 32,
        num_samples: int = 1,
        eval_num_samples: int = 8,
        kl_weight: float = 1.0,
        max_latent_std: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, **options)
        for name, value in (("hidden", hidden), ("layers", layers), ("latents", latents), ("num_samples", num_samples)):
            arguments.check_count(name, value)
        arguments.check_count("eval_num_samples", eval_num_samples)
        arguments.check_count("attention_layers", attention_layers, least=0)
        arguments.check_rate("kl_weight", kl_weight)
        arguments.check_rate("max_latent_std", max_latent_std)
        self.attention = attention
        self.num_samples = num_samples
        self.eval_num_samples = eval_num_samples
        self.kl_weight = kl_weight
        self.max_latent_std = max_latent_std
        like = self.head_weight
        blocks, elements = attention_layers if attention else 0, self.features + self.outputs
        self.encoder = SetTransformer(elements, hidden, layers, blocks, heads).to(like)
        self.latent_encoder = SetTransformer(elements, hidden, layers, blocks, heads).to(like)
        self.latent_distribution = MLP(hidden, 2 * latents, [hidden]).to(like)
        self.key = MLP(self.features, hidden, [hidden]).to(like) if attention else None
        self.cross_attention = MultiheadAttention(hidden, heads).to(like) if attention else None
        self.decoder = MLP(self.features + hidden + latents, self.decoded, [hidden] * layers).to(like)

    def encode(self, meta: MetaParameters, known: Inputs, support: Support) -> Representation:
        """Return the state for predictions, with draws of z from q(z | S)."""
        pairs = self.pairs(known, support.y)
        prior = self.latent(meta, pairs, support.mask)
        return self._represented(meta, known, pairs, support.mask, _draws(prior, self.eval_num_samples))

    def decode(self, meta: MetaParameters, state: Representation, asked: Inputs) -> Samples:
        """Return a Gaussian, or row of logits, for each draw and query."""
        query, draws = asked.features.shape[0], state.latents.shape[0]
        if self.cross_attention is None:
            own = mean_of_set(state.values, state.mask).expand(query, -1)
        else:
            part = module_part(meta, "cross_attention")
            asking = self._keys(meta, asked)
            own = call_with(self.cross_attention, part, asking, state.keys, state.values, state.mask)
        same = torch.cat([asked.features, own], dim=1).expand(draws, -1, -1)  # [draws, query, features + hidden]
        latents = state.latents[:, None].expand(-1, query, -1).to(same.dtype)  # [draws, query, latents]
        decoded = call_with(self.decoder, module_part(meta, "decoder"), torch.cat([same, latents], dim=2))
        return self.distribution(decoded, asked)

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the negative evidence lower bound for each scored example, and the report."""
        known, asked = self.inputs(meta, task.support_x), self.inputs(meta, task.query_x)
        pairs = self.pairs(known, task.support_y)
        together = joined_sets(task._replace(support_x=pairs, query_x=self.pairs(asked, task.query_y)))
        prior = self.latent(meta, pairs, task.support_mask)
        posterior = self.latent(meta, together.x, together.mask)
        latents = _draws(posterior, self.num_samples)
        state = self._represented(meta, known, pairs, task.support_mask, latents)
        loss, count, result = self.scored(meta, state, known, asked, task)
        divergence = gaussian_kl(posterior, prior)
        loss = loss + self.kl_weight * divergence / count
        return loss, result._replace(loss=loss, diagnostics={**result.diagnostics, "kl": divergence})

    def latent(self, meta: MetaParameters, pairs: Tensor, mask: Tensor | None) -> DiagonalGaussian:
        """Return the distribution of z given a set of examples, ``[examples, features + outputs]``."""
        tokens, _ = call_with(self.latent_encoder, module_part(meta, "latent_encoder"), pairs, mask)
        whole = mean_of_set(tokens, mask)
        part = module_part(meta, "latent_distribution")
        mean, width = self.in_full(call_with(self.latent_distribution, part, whole)).chunk(2)
        std = self.max_latent_std * (0.1 + 0.9 * width.sigmoid())
        return DiagonalGaussian({"z": mean}, {"z": std.log()})

    def _represented(
        self, meta: MetaParameters, known: Inputs, pairs: Tensor, mask: Tensor | None, latents: Tensor
    ) -> Representation:
        values, _ = call_with(self.encoder, module_part(meta, "encoder"), pairs, mask)
        return Representation(self._keys(meta, known), values, mask, latents)

    def _keys(self, meta: MetaParameters, inputs: Inputs) -> Tensor:
        return inputs.features if self.key is None else call_with(self.key, module_part(meta, "key"), inputs.features)


def _draws(distribution: DiagonalGaussian, count: int) -> Tensor:
    mean, std = distribution.mean["z"], distribution.log_std["z"].exp()
    return mean + std * torch.randn(count, *mean.shape, dtype=mean.dtype, device=mean.device)  # [draws, latents]
