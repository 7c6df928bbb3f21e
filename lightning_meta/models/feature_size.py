"""The size of a model's output."""

from torch import nn

from lightning_meta.arguments import check_count


def feature_size(model: nn.Module, features: int | None, reason: str) -> int:
    """Return ``features`` if given, else the outputs of the model's last layer.

    Args:
        model: A model that gives ``[examples, features]``.
        features: The size, where the model does not end in a linear layer.
        reason: What the learner needs it for, for errors.

    Raises:
        ValueError: If it is not positive, or not given and the last layer with parameters is no `nn.Linear`.

    Example:
        >>> feature_size(nn.Sequential(nn.Linear(2, 8), nn.Tanh()), None, "makes weights of this size")
        8
    """
    if features is not None:
        check_count("features", features)
        return features
    owners = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    if not owners or not isinstance(owners[-1], nn.Linear):
        last = type(owners[-1]).__name__ if owners else "no layer with parameters"
        raise ValueError(
            f"features=None and the model ends in {last}: the learner {reason}; pass features=, the size of the "
            "model's output"
        )
    return owners[-1].out_features
