"""Normalization layers for models that adapt to tasks."""

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
        return _by_batch(x, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Return the arguments, for printing."""
        return f"{self.num_features}, eps={self.eps}"


class RunningBatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, whose running statistics are kept, that runs in mixed precision under ``torch.func``.

    For models that are trained as ordinary networks first; a learner then chooses by ``batch_statistics``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[examples, channels, height, width]``."""
        if self.running_mean is None or self.running_var is None:  # where a learner takes the batch's statistics
            return _by_batch(x, self.weight, self.bias, self.eps)
        if self.training or x.dtype == self.weight.dtype:
            return super().forward(x)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return _scaled(x, scale, self.bias - self.running_mean * scale)


class TaskLayerNorm(nn.Module):
    """Layer normalization of the last dimension.

    Unlike `torch.nn.LayerNorm` it runs in mixed precision under ``torch.func``.

    Args:
        size: The size of the last dimension.
        eps: Added to the variance.
    """

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[..., size]``."""
        normalized = F.layer_norm(x, (self.size,), eps=self.eps)
        return torch.addcmul(self.bias.to(x.dtype), normalized, self.weight.to(x.dtype))

    def extra_repr(self) -> str:
        """Return the arguments, for printing."""
        return f"{self.size}, eps={self.eps}"


def batch_norm_2d(num_features: int, running_statistics: bool) -> nn.Module:
    """Return a batch normalization of channels, with running statistics if they are asked for."""
    return RunningBatchNorm2d(num_features) if running_statistics else TaskBatchNorm2d(num_features)


def _by_batch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.dtype == weight.dtype:
        # Torch's own is faster when called from Python; a captured step gains by fewer operations.
        if not torch.compiler.is_compiling() and get_proxy_mode() is not None:
            return batch_norm(x, weight, bias, eps)
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
    return _scaled(F.batch_norm(x, None, None, training=True, eps=eps), weight, bias)


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift channels in the type of ``[examples, channels, height, width]``."""
    return torch.addcmul(shift[:, None, None].to(x.dtype), x, scale[:, None, None].to(x.dtype))
