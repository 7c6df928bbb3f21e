"""Whether padding may stay in a batch: only where no example's output depends on other examples in its set.

Trying this on a batch does not prove it: a model may couple its examples at other parameters, or on other inputs. So it
is decided by the class of every layer and the dimensions of its inputs; classes not listed here count as coupling.
"""

from typing import Any

from torch import Tensor, nn

from lightning_meta.likelihoods.losses import LossFunction, splits_by_example
from lightning_meta.models.batch_statistics import BatchStatistics
from lightning_meta.models.mlp import MLP
from lightning_meta.models.norm import TaskLayerNorm
from lightning_meta.models.sequence_encoder import SelfAttention, SequenceEncoder, TransformerBlock
from lightning_meta.models.text_encoder import BagOfWords, TextEncoder
from lightning_meta.models.text_transformer import TextTransformer
from lightning_meta.models.vision_transformer import VisionTransformer

# Element by element, or within an example, whatever the number of dimensions.
_ANY_DIMS = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
    *(nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Dropout, nn.AlphaDropout),
    *(nn.Linear, nn.GroupNorm),
)

# By the dimensions of a batch: with one less, these take the examples for channels.
_SPATIAL: dict[type[nn.Module], int] = {
    kind: dims
    for dims, kinds in {
        3: (nn.Conv1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.InstanceNorm1d),
        4: (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.InstanceNorm2d),
        5: (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.InstanceNorm3d),
    }.items()
    for kind in kinds
} | {nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5, nn.Softmax2d: 4}

# This package's own, from the dimensions of a batch to those of the output.
_OWN: dict[type[nn.Module], tuple[int, int]] = {
    **dict.fromkeys((SelfAttention, TransformerBlock, SequenceEncoder, TaskLayerNorm), (3, 3)),
    VisionTransformer: (4, 2),
}
_TEXTS = (TextEncoder, BagOfWords, TextTransformer)

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def are_independent(model: nn.Module, loss_fn: LossFunction, choice: BatchStatistics, *sets: Any) -> bool:
    """Whether no example's output and loss depend on other examples in its set; sets are ``[tasks, examples, ...]``."""
    return splits_by_example(loss_fn) and all(
        dims_after(model, x.ndim - 1, choice) is not None if isinstance(x, Tensor) else takes_texts_apart(model, choice)
        for x in sets
    )


def dims_after(module: nn.Module, dims: int, choice: BatchStatistics) -> int | None:
    """Return how many dimensions a module's output has if its input ``[examples, ...]`` has ``dims``.

    None where it may couple examples.
    """
    kind = type(module)
    of_torch = kind.__module__.startswith("torch.nn.modules.")  # a class derived from torch's may do anything
    if not (of_torch or kind is MLP or kind in _OWN) or not _is_as_defined(module):
        return None
    if kind in _OWN:
        taken, given = _OWN[kind]
        return given if dims == taken and all(_is_fit(part, choice) for part in module.children()) else None
    if isinstance(module, nn.Embedding) and dims >= 1:
        return dims + 1
    if dims < 2:
        return None
    if isinstance(module, nn.Sequential | MLP):
        after: int | None = dims
        for part in module.layers if isinstance(module, MLP) else module:
            after = None if after is None else dims_after(part, after, choice)
        return after
    if isinstance(module, nn.Flatten):
        first, last = module.start_dim % dims, module.end_dim % dims
        return dims - (last - first) if 0 < first <= last else None
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        kept = choice == "running" and not module.training and module.running_mean is not None
    elif isinstance(module, nn.LayerNorm):
        kept = len(module.normalized_shape) < dims
    elif isinstance(module, nn.Softmax | nn.LogSoftmax | nn.GLU):
        kept = module.dim is not None and module.dim % dims > 0
    else:
        kept = kind in _ANY_DIMS or _SPATIAL.get(kind) == dims
    return dims if kept else None


def takes_texts_apart(model: nn.Module, choice: BatchStatistics) -> bool:
    """Whether a model is one of this package's for texts, which takes each example by itself."""
    if type(model) not in _TEXTS or not _is_as_defined(model):
        return False
    return all(_is_fit(part, choice) for part in model.children())


def _is_fit(part: nn.Module, choice: BatchStatistics) -> bool:
    """Whether a part of this package's models takes examples apart, for the dimensions that it gets there."""
    if type(part) is nn.ModuleList:
        return all(_is_fit(each, choice) for each in part)
    dims = _SPATIAL.get(type(part)) or _OWN.get(type(part), (2, 2))[0]
    return dims_after(part, dims, choice) is not None


def _is_as_defined(module: nn.Module) -> bool:
    """Whether a module has no hooks, and the method ``forward`` that torch or this package defines."""
    hooked = any(getattr(module, name) for name in _HOOKS)
    return not hooked and "forward" not in vars(module) and is_of_library(type(module).forward)


def is_of_library(function: object) -> bool:
    """Whether a function is defined by torch or this package."""
    return str(getattr(function, "__module__", "")).partition(".")[0] in ("lightning_meta", "torch")
