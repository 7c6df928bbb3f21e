"""Predictive distributions of a query's target, and the parts of their uncertainty."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Likelihood = Literal["categorical", "bernoulli", "gaussian"]


class Prediction(NamedTuple):
    """A prediction with its uncertainty, split into parts where the learner has a posterior.

    Attributes:
        mean: Class probabilities ``[query, classes]`` (for binary cross-entropy, of the positive class), or the
            regression output.
        total: Uncertainty of the prediction: entropy in nats ``[query]``, or variance. None for a regression
            learner without a noise model.
        aleatoric: The part that more support examples would not remove.
        epistemic: The part that they would remove; None (unknown, not zero) for learners of a single point.
            Corrected for the number of draws, see `predict`.
    """

    mean: Tensor
    total: Tensor | None
    aleatoric: Tensor | None
    epistemic: Tensor | None


class Samples(NamedTuple):
    """Outputs on a task's queries of models drawn from the posterior; one draw for a point learner.

    Attributes:
        outputs: Logits or regression outputs, ``[samples, query, ...]``.
        noise: The observation noise's variance, of the same shape; None where there is no noise model.
        spread: The variance about each output that comes from parameters integrated in closed form, of the same
            shape; None where there are none.
    """

    outputs: Tensor
    noise: Tensor | None = None
    spread: Tensor | None = None

    def present(self) -> dict[str, Tensor]:
        """Return the fields that are not None, by name, since None cannot be vectorized over."""
        return {name: value for name, value in self._asdict().items() if value is not None}


def mean_output(likelihood: Likelihood | None, samples: Samples) -> Tensor:
    """Return the predictive mean in the form of one model's output, ``[query, ...]``.

    The logarithm of the mean class probabilities, the logit of the mean probability, or the mean output.
    """
    outputs = samples.outputs  # [samples, query, ...]
    if outputs.shape[0] == 1:
        return outputs[0]
    if likelihood == "categorical":
        return outputs.log_softmax(2).logsumexp(0) - math.log(outputs.shape[0])
    if likelihood == "bernoulli":
        return F.logsigmoid(outputs).logsumexp(0) - F.logsigmoid(-outputs).logsumexp(0)
    return outputs.mean(0)


def predict(likelihood: Likelihood | None, samples: Samples, together: int = 1) -> Prediction:
    """Return the predictive mean and its uncertainty.

    Entropies split into the expected entropy of one draw (aleatoric) and the mutual information of target and
    draw (epistemic); variances into the noise and the variance of the mean (law of total variance).

    The variance and the entropy of a mean over M draws are low by a share of about 1/M. Both are corrected by the
    jackknife (Quenouille, 1956; Miller, 1974), ``M f(all) − (M − 1) mean f(all but one)``. The variance is then the
    unbiased one, with M − 1 in the denominator. The mutual information has no unbiased form; its estimate is correct
    up to order 1/M², is clamped at 0, and can exceed the largest entropy of the classes. Total is the sum of both.

    Args:
        likelihood: The distribution of the targets.
        samples: The draws.
        together: The number of consecutive draws that are not independent, and which the jackknife leaves out together.
    """
    outputs = samples.outputs.float() if samples.outputs.dtype.itemsize < 4 else samples.outputs
    count = outputs.shape[0]
    single = count == 1 and samples.spread is None
    if likelihood in ("categorical", "bernoulli"):
        probabilities = outputs.softmax(2) if likelihood == "categorical" else outputs.sigmoid()
        mean = probabilities.mean(0)  # [query, ...]
        aleatoric = _entropy(likelihood, probabilities).mean(0)  # [query]
        if single:
            return Prediction(mean, aleatoric, aleatoric, None)
        # [independent draws, query, ...]
        units = probabilities.unflatten(0, (-1, together)).mean(1) if count > together else probabilities
        epistemic = (_entropy_of_mean(likelihood, units) - aleatoric).clamp(min=0)
        return Prediction(mean, aleatoric + epistemic, aleatoric, epistemic)
    mean = outputs.mean(0)
    if samples.noise is None:
        return Prediction(mean, None, None, None)
    aleatoric = samples.noise.mean(0)
    if single:
        return Prediction(mean, aleatoric, aleatoric, None)
    epistemic = outputs.var(0, correction=1) if count > 1 else torch.zeros_like(mean)
    if samples.spread is not None:
        epistemic = epistemic + samples.spread.mean(0)
    return Prediction(mean, aleatoric + epistemic, aleatoric, epistemic)


def log_likelihood(likelihood: Likelihood, samples: Samples, targets: Tensor) -> Tensor:
    """Return each draw's log-likelihood of each query, ``[samples, query]``, summed over the parts of a target.

    A Gaussian likelihood needs samples with noise. Targets are ``[query, ...]``.
    """
    outputs = samples.outputs
    targets = targets.expand(outputs.shape[0], *targets.shape)  # [samples, query, ...]
    if likelihood == "categorical":
        flat = -F.cross_entropy(outputs.flatten(0, 1), targets.flatten(0, 1), reduction="none")
        values = flat.unflatten(0, outputs.shape[:2])  # [samples, query, ...]
    elif likelihood == "bernoulli":
        values = -F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    else:
        variance = gaussian_variance(samples)
        values = -0.5 * ((targets - outputs).square() / variance + variance.log() + math.log(2 * math.pi))
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def mixture_log_likelihood(likelihood: Likelihood, samples: Samples, targets: Tensor) -> Tensor:
    """Return the logarithm of each query's mean likelihood over draws, ``[query]``."""
    by_draw = log_likelihood(likelihood, samples, targets)  # [samples, query]
    return by_draw.logsumexp(0) - math.log(by_draw.shape[0])


def gaussian_variance(samples: Samples) -> Tensor:
    """Return the variance about each draw's output, ``[samples, query, ...]``."""
    if samples.noise is None:
        raise ValueError("these samples have no noise: a Gaussian likelihood needs one")
    return samples.noise if samples.spread is None else samples.noise + samples.spread


def cumulative(samples: Samples, values: Tensor) -> Tensor:
    """Return the predictive distribution function of a regression at values ``[query, ...]``."""
    standard = (values - samples.outputs) / gaussian_variance(samples).sqrt()
    return torch.special.ndtr(standard).mean(0)


def quantile(samples: Samples, level: float) -> Tensor:
    """Return the predictive quantile of a regression, ``[query, ...]``, by bisection of the distribution function."""
    reach = 10 * gaussian_variance(samples).sqrt()
    low, high = (samples.outputs - reach).amin(0), (samples.outputs + reach).amax(0)
    for _ in range(40):
        middle = (low + high) / 2
        below = cumulative(samples, middle) < level
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def _entropy_of_mean(likelihood: str, units: Tensor) -> Tensor:
    """Return the jackknife estimate of the entropy of mean probabilities, from draws ``[draws, query, ...]``."""
    count, mean = units.shape[0], units.mean(0)
    without_one = mean + (mean - units) / (count - 1)  # [draws, query, ...], the means of all draws but one
    entropy_without_one = _entropy(likelihood, without_one.clamp(0, 1)).mean(0)
    return count * _entropy(likelihood, mean[None])[0] - (count - 1) * entropy_without_one


def _entropy(likelihood: str, probabilities: Tensor) -> Tensor:
    if likelihood == "categorical":
        return torch.special.entr(probabilities).sum(2)
    return torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
