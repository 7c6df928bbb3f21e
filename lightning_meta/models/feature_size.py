"""The size of a model's output."""

from torch import nn

from lightning_meta.arguments import check_count


def feature_size(model: nn.Module, num_features: int | None, reason: str) -> int:
    """Return the number of features if it is given, else the outputs of the model's last linear layer.

    Args:
        model: A model that gives ``[examples, features]``.
        num_features: The number, where the last linear layer does not tell it.
        reason: What the learner needs it for, for errors.

    Raises:
        ValueError: If it is not positive, or not given and the model has no `nn.Linear`.

    Example:
        >>> feature_size(nn.Sequential(nn.Linear(2, 8), nn.Tanh()), None, "makes weights of this size")
        8
    """
    if num_features is not None:
        check_count("num_features", num_features)
        return num_features
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"num_features=None, and {type(model).__name__} has no nn.Linear, whose outputs would tell the size of its "
            f"output: the learner {reason}; set num_features"
        )
    return linear[-1].out_features
