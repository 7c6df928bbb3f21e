"""The inner learning rates that a learner has learned, by layer."""

from torch import Tensor

from lightning_meta.inner.rates import InnerRates
from lightning_meta.learners.task_learner import TaskLearner


def learned_rates(learner: TaskLearner) -> dict[str, Tensor]:
    """Return the learned rates of each adapted parameter by its name in the model; empty if rates are not learned.

    They are scalars, ``[steps]`` or of the parameter's shape, as ``learned_rates`` of `MAML` says.
    """
    rates = _rates(learner)
    if rates is None:
        return {}
    return {key.replace("/", "."): rate.detach().float().cpu() for key, rate in rates.learned_rates.items()}


def rate_metrics(learner: TaskLearner) -> dict[str, float]:
    """Return scalars to log: the mean rate of each parameter, and with rates by step the rate of each step."""
    metrics = {}
    rates = _rates(learner)
    for name, rate in learned_rates(learner).items():
        metrics[f"learned_rates/{name}"] = float(rate.mean())
        if rates is not None and rates.learned == "tensor_step":
            metrics |= {f"learned_rates/{name}_step_{step}": float(own) for step, own in enumerate(rate)}
    return metrics


def _rates(learner: TaskLearner) -> InnerRates | None:
    rates = getattr(learner, "inner_rates", None)
    return rates if isinstance(rates, InnerRates) else None
