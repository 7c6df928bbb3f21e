"""Batch normalization with a scale and shift for every inner step (MAML++: Antoniou, Edwards, Storkey, 2019)."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_meta.inner.names import key_of
from lightning_meta.models.norm import TaskBatchNorm2d


class StepNorms(nn.Module):
    """Scales and shifts of batch normalization after 1, 2, ... inner steps; before the first step the model's own.

    Attributes:
        names: The model's parameters that depend on the step.

    Args:
        model: The model, whose values are the initial ones.
        steps: The number of steps in training; more steps in evaluation use the last ones.

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
        """Return the scales and shifts after ``step`` steps, named as in the model.

        Args:
            step: The number of inner steps taken.
            own: The model's own parameters.
            values: The current values of this module's parameters, named as in this module.
        """
        if step == 0:
            return {name: own[name] for name in self.names}
        learned = {name: values[f"later.{key_of(name)}"] for name in self.names}
        return {name: value[min(step, value.shape[0]) - 1] for name, value in learned.items()}
