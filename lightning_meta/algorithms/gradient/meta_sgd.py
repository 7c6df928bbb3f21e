"""MAML that learns its inner rates element by element.

Paper: Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017, arXiv 1707.09835:
φ = θ − α ∘ ∇L_S(θ) (equation 4), with θ and the vector α learned together.

Differences from the paper: α starts at a constant, not at random values; several steps share one α.
"""

from typing import Any

from lightning_meta.algorithms.gradient.maml import MAML


class MetaSGD(MAML):
    """MAML with a learned rate for each scalar parameter. Arguments as in `MAML`, without ``learned_rates``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, learned_rates="element", **options)  # type: ignore[misc]
