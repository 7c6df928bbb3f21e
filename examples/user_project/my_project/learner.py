"""Classification by the nearest median of each class's features."""

import torch
from torch import Tensor, nn

from lightning_meta import SupportClassLearner


class MedianPrototypes(SupportClassLearner):
    """A prototypical network whose prototypes are medians, so that a wrong label matters less.

    Args:
        model: Maps inputs to features.
        temperature: Divides the distances at the beginning of training; it is learned.
        **options: As in `TaskLearner`.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0, **options):
        super().__init__(model, **options)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0")
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())

    def adapt_task(self, meta, support) -> Tensor:
        """Return the prototypes, ``[ways, features]``."""
        features = self.call_model(self.model_parameters(meta), support.x)  # [support, features]
        members = self.one_hot(support, features.dtype).mT[:, :, None] > 0  # [ways, support, 1]
        return features.where(members, torch.nan).nanmedian(1).values

    def query_output(self, meta, state, x) -> Tensor:
        """Return logits, ``[query, ways]``; a class that the support set lacks has none."""
        features = self.call_model(self.model_parameters(meta), x)
        squared = (features[:, None] - state).square().sum(2)
        return (-squared / meta["log_temperature"].exp()).nan_to_num(nan=-torch.inf)
