"""A batch normalization layer for models that adapt to tasks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from lightning_meta.models.batch_norm import batch_norm


class TaskBatchNorm2d(nn.Module):
    """Batch normalization by the statistics of the batch at hand, in training and evaluation alike.

    Unlike `torch.nn.BatchNorm2d` it runs in mixed precision under ``torch.func``.

    Args:
        num_features: The number of channels.
        eps: Added to the variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def reset_parameters(self) -> None:
        """Set scale and shift to their initial values, 1 and 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[examples, channels, height, width]``."""
        if x.dtype == self.weight.dtype:
            # Torch's own is faster when called from Python; a captured step gains by fewer operations.
            if not torch.compiler.is_compiling() and get_proxy_mode() is not None:
                return batch_norm(x, self.weight, self.bias, self.eps)
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        normalized = F.batch_norm(x, None, None, training=True, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None].to(x.dtype), normalized, self.weight[:, None, None].to(x.dtype))

    def extra_repr(self) -> str:
        """Return the arguments, for printing."""
        return f"{self.num_features}, eps={self.eps}"
