"""Meta-Curvature: MAML that learns matrices which multiply the inner gradients.

Paper: Park, Oliva, "Meta-Curvature", NeurIPS 2019, arXiv 1902.03356.

The gradient G of a layer's weight has three modes: outputs, inputs, and the positions of a filter. Each has a learned
matrix, at first the identity, and an inner step is

    φ ← φ − α MC(G),        MC(G) = G ×₃ M_f ×₂ M_i ×₁ M_o,        (G ×ₙ M)[…, j, …] = Σ_i M[j, i] G[…, i, …]

So the gradient is multiplied by the Kronecker product of the three. Initialization and matrices are learned together,
as in MAML; all steps and tasks share the matrices.

Differences from the paper:
- A tensor of one dimension, such as a bias, has a matrix for that dimension. The authors' code and learn2learn scale
  these tensors element by element.
- A mode with more than ``largest_matrix`` entries, such as the words of an embedding, has a diagonal matrix: one of
  4096 words would have 17 million numbers.
- ``modes`` can leave matrices out, to see what each is worth.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_meta.algorithms.gradient.maml import MAML
from lightning_meta.inner.curvature_factors import CurvatureFactors, Mode
from lightning_meta.likelihoods import LossFunction


class MetaCurvature(MAML):
    """MAML with learned matrices that multiply the inner gradients (Meta-Curvature; Park and Oliva, 2019).

    Before training it is `MAML`. `MetaSGD` is the same with a diagonal matrix over all parameters.

    Args:
        model: The model whose initialization is meta-learned.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        inner_lr: The inner learning rate α, which the matrices scale.
        modes: Which modes of gradients have a matrix, of "outputs", "inputs" and "filter": the first dimension of a
            weight, its second, and all others together.
        largest_matrix: A mode with more entries than this has a diagonal matrix.
        **options: As in `MAML`, `GradientLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, or no adapted tensor has one of the modes.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import MetaCurvature
        >>> learner = MetaCurvature(nn.Linear(3, 1), nn.MSELoss(), inner_lr=0.1)
        >>> [(name, tuple(factor.shape)) for name, factor in learner.curvature_factors.factors.items()]
        [('weight/outputs', (1, 1)), ('weight/inputs', (3, 3)), ('bias/outputs', (1, 1))]
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        inner_lr: float = 0.01,
        modes: Sequence[Mode] = ("outputs", "inputs", "filter"),
        largest_matrix: int = 512,
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, inner_lr, **options)
        parameters = dict(model.named_parameters())
        adapted = {name: parameters[name] for name in self.adapted_names}
        self.curvature_factors = CurvatureFactors(adapted, modes, largest_matrix)
