"""Batch normalization with a scale and shift for every inner step (MAML++: Antoniou, Edwards, Storkey, 2019)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_meta.inner.names import key_of
from lightning_meta.models.norm import TaskBatchNorm2d


class StepNorms(nn.Module):
    """Scales and shifts of a model's batch normalization after 1, 2, ... inner steps; before the first its own count.

    Attributes:
        names: The model's parameters that differ by step.

    Args:
        model: The model, in which all start.
        steps: How many steps are trained; a model that took more, in evaluation, is normalized as after the last
            of these.

    Raises:
        ValueError: If the model has no batch normalization with trainable scale or shift.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        own = {
            f"{prefix}.{name}" if prefix else name: p
            for prefix, module in model.named_modules()
            if isinstance(module, _BatchNorm | TaskBatchNorm2d)
            for name, p in module.named_parameters(recurse=False)
            if p.requires_grad
        }
        if not own:
            raise ValueError(
                "batch_norm_per_step=True but model has no batch normalization with a trainable scale or shift: leave "
                "it False"
            )
        self.names = tuple(own)
        self.later = nn.ParameterDict(
            {key_of(name): nn.Parameter(p.detach().expand(steps, *p.shape).clone()) for name, p in own.items()}
        )

    def after(self, step: int, own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the scales and shifts of a model that took ``step`` steps, by their names in the model.

        Args:
            step: The number of inner steps taken.
            own: The model's own parameters.
            values: The current value of each of this module's parameters, by its name in this module.
        """
        if step == 0:
            return {name: own[name] for name in self.names}
        learned = {name: values[f"later.{key_of(name)}"] for name in self.names}
        return {name: value[min(step, value.shape[0]) - 1] for name, value in learned.items()}
