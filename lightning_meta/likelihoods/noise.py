"""The observation noise of a Gaussian likelihood, fixed or learned."""

import math
from collections.abc import Mapping

from torch import Tensor, nn

from lightning_meta.arguments import check_rate
from lightning_meta.likelihoods.predictive import Likelihood


class ObservationNoise(nn.Module):
    """The standard deviation of Gaussian noise on every target; without effect for other likelihoods.

    Args:
        likelihood: The learner's likelihood.
        like: Gives the parameter's dtype and device.
        observation_std: A fixed standard deviation in the targets' units; None: learned by its logarithm, from 1.

    Raises:
        ValueError: If it is not positive, or the likelihood has no noise.
    """

    def __init__(self, likelihood: Likelihood, like: Tensor, observation_std: float | None) -> None:
        super().__init__()
        if observation_std is not None:
            check_rate("observation_std", observation_std)
            if likelihood != "gaussian":
                raise ValueError(f"observation_std={observation_std} but the likelihood is {likelihood}: leave it None")
        self.observation_std = observation_std
        learned = likelihood == "gaussian" and observation_std is None
        self.log_std = nn.Parameter(like.new_zeros(())) if learned else None

    def variance(self, values: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """Return the noise's variance, a scalar of the dtype and device of ``like``; 1 where the likelihood has none.

        ``values`` holds the current value of this module's parameter by name.
        """
        if self.log_std is not None:
            return (2 * values["log_std"]).exp()
        return like.new_tensor(1.0 if self.observation_std is None else math.pow(self.observation_std, 2))
