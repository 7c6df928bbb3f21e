"""MAML that adapts a part of the model.

Papers: Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse?", ICLR 2020, arXiv 1909.09157 (ANIL);
Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021, arXiv 2008.08882.

Differences from the papers: none in the algorithm. Any other part can be adapted by ``MAML(adapt=[patterns])``.
"""

from typing import Any

from lightning_meta.algorithms.gradient.maml import MAML


class ANIL(MAML):
    """Almost no inner loop: ``MAML(adapt="head")``. Arguments as in `MAML`, without ``adapt``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, adapt="head", **options)  # type: ignore[misc]


class BOIL(MAML):
    """Body only in the inner loop: ``MAML(adapt="body")``. Arguments as in `MAML`, without ``adapt``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, adapt="body", **options)  # type: ignore[misc]
