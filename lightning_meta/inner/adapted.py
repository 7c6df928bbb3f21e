"""The choice of the parameters that the inner loop adapts."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn


def adapted_names(model: nn.Module, adapt: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the parameters that adapt, in the model's order.

    Args:
        model: The model; parameters with ``requires_grad=False`` never adapt.
        adapt: "all"; "head", the last defined layer with parameters of its own; "body", all but the head; or name
            patterns in shell style, such as ``["layers.3.*", "*.bias"]``.

    Raises:
        ValueError: If a pattern matches nothing, or no parameter is left to adapt.

    Example:
        >>> from torch import nn
        >>> adapted_names(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), "head")
        ('2.weight', '2.bias')
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("model has no parameter with requires_grad=True: there is nothing to meta-learn")
    names = _named_part(model, adapt, trainable) if isinstance(adapt, str) else _matching(adapt, trainable)
    if not names:
        raise ValueError(f"adapt={adapt!r} leaves no trainable parameter to adapt; trainable are {trainable}")
    return tuple(names)


def _named_part(model: nn.Module, part: str, trainable: list[str]) -> list[str]:
    if part == "all":
        return trainable
    if part not in ("head", "body"):
        raise ValueError(f'adapt={part!r} is not "all", "head", "body" or a list of name patterns')
    owners = [prefix for prefix, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]
    prefix = f"{owners[-1]}." if owners[-1] else ""
    own = {f"{prefix}{name}" for name, _ in model.get_submodule(owners[-1]).named_parameters(recurse=False)}
    return [name for name in trainable if (name in own) == (part == "head")]


def _matching(patterns: Sequence[str], trainable: list[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trainable):
            raise ValueError(f"adapt: the pattern {pattern!r} matches no trainable parameter; they are {trainable}")
    return [name for name in trainable if any(fnmatchcase(name, pattern) for pattern in patterns)]
