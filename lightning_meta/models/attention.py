"""Attention of several heads, written out so that its derivatives exist to every order.

Paper: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv 1706.03762. For heads of size d (equation 1):

    attention(Q, K, V) = softmax(Q Kᵀ / √d) V

Torch's fused kernels for it have no second derivative, which meta-gradients need, and cannot be vectorized over tasks.
"""

import math

import torch
from torch import Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Return what each query gets from the values, ``[..., queries, width]``.

    Args:
        queries: ``[..., queries, width]``, whose parts of size ``width / heads`` are those of the heads.
        keys: ``[..., keys, width]``.
        values: ``[..., keys, width]``.
        heads: The number of heads, which divides the width.
        mask: ``[..., keys]``, True where a key counts; None where all do. At least one must.
    """
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(-3, -2) for part in (queries, keys, values))
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # [..., heads, queries, keys]
    if mask is not None:
        scores = torch.where(mask[..., None, None, :], scores, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2)
