"""The length of features, and cosines between them."""

import torch
from torch import Tensor

_SMALL = 1e-12  # added to squared lengths, so that the vector 0 has a gradient


def single_or_double(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which to compute what half precision cannot; `torch.promote_types` cannot be exported."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_length(features: Tensor) -> Tensor:
    """Return features ``[..., features]`` scaled to length 1; zeros stay zeros."""
    wide = features.to(single_or_double(features.dtype))  # squares overflow in half precision
    return (wide * (wide.square().sum(-1, keepdim=True) + _SMALL).rsqrt()).to(features.dtype)


def cosines(features: Tensor, references: Tensor) -> Tensor:
    """Return the cosines between features ``[examples, features]`` and references, ``[examples, references]``."""
    return unit_length(features) @ unit_length(references).mT
