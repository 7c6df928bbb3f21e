"""The size of a model's output."""

from torch import nn

from lightning_meta.arguments import check_count


def feature_size(model: nn.Module, given: int | None, reason: str, argument: str = "features") -> int:
    """Return the size if it is given, else the outputs of the model's last linear layer.

    Args:
        model: A model that gives ``[examples, features]``.
        given: The size, where the last linear layer does not tell it.
        reason: What the learner needs it for, for errors.
        argument: What errors call ``given``.

    Raises:
        ValueError: If it is not positive, or not given and the model has no `nn.Linear`.

    Example:
        >>> feature_size(nn.Sequential(nn.Linear(2, 8), nn.Tanh()), None, "makes weights of this size")
        8
    """
    if given is not None:
        check_count(argument, given)
        return given
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"{argument}=None, and {type(model).__name__} has no nn.Linear, whose outputs would tell the size of its "
            f"output: the learner {reason}; set {argument}"
        )
    return linear[-1].out_features
