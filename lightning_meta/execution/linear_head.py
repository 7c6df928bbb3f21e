"""The linear layer at the end of a model, and the features that it is given."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lightning_meta.execution.functional import exclusive


def linear_head(model: nn.Module, needed_by: str) -> tuple[str, nn.Linear]:
    """Return the name of a model's last layer, and the layer.

    Args:
        model: The model.
        needed_by: The start of a sentence in the error, such as "AmortizedMAML solves for".

    Raises:
        ValueError: If the last layer with parameters is no `nn.Linear`.
    """
    owners = [(n, m) for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))]
    if not owners or not isinstance(owners[-1][1], nn.Linear):
        last = type(owners[-1][1]).__name__ if owners else "nothing"
        raise ValueError(
            f"model ends in {last}, and {needed_by} an nn.Linear at the end: add one, as "
            "nn.Sequential(model, nn.Linear(features, outputs))"
        )
    return owners[-1]


def features_and_output(
    model: nn.Module, name: str, needed_by: str, call: Callable[..., Tensor], *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Return the inputs ``[examples, features]`` of a model's head, and the model's output ``[examples, outputs]``.

    Args:
        model: The model.
        name: The head's name in it.
        needed_by: The learner's name, for the error.
        call: Calls the model once with these arguments, and returns its output.
        *arguments: Its arguments.

    Raises:
        ValueError: If the model calls its head otherwise, or changes its output.
    """
    seen: list[tuple[Tensor, Tensor]] = []
    with exclusive():
        handle = model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: seen.append((inputs[0], output))
        )
        try:
            output = call(*arguments)
        finally:
            handle.remove()
    if len(seen) != 1 or seen[0][0].ndim != 2 or seen[0][1] is not output:
        raise ValueError(
            f"model.{name} is called {len(seen)} times, on inputs of shape "
            f"{[tuple(inputs.shape) for inputs, _ in seen]}: {needed_by} needs a head that is called once, on "
            "[examples, features], and a model that returns the head's output unchanged"
        )
    return seen[0]
