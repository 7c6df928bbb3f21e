"""What a learner's runs log, as far as it decides which panels a dashboard has."""

from typing import Literal, NamedTuple

from lightning_meta.algorithms import AmortizedMAML, ImplicitMAML
from lightning_meta.callbacks.episodes.learned_rates import learned_rates
from lightning_meta.learners.gradient_learner import GradientLearner
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.likelihoods.losses import likelihood_of, needs_same_shape


class RunKind(NamedTuple):
    """What the runs of a learner log.

    Attributes:
        metric: "acc" or "mse"; None for losses with neither.
        uncertainty: The metrics of predictive distributions: those of classes, of real targets, or none.
        adapts: Whether there are inner steps, and so the metric by step.
        inner_gradients: Whether inner steps take gradients by an update rule, whose norms are logged.
        pictures: Whether pictures of tasks are drawn: for real targets, and for classes of pictures.
        learned_rates: Whether inner rates are learned.
        diagnostics: The algorithm's own metrics in training.
        calibration: Whether calibration is drawn where there is ``uncertainty``; it is not for several labels.
    """

    metric: Literal["acc", "mse"] | None
    uncertainty: Literal["classes", "real"] | None = None
    adapts: bool = True
    inner_gradients: bool = True
    pictures: bool = True
    learned_rates: bool = False
    diagnostics: tuple[str, ...] = ()
    calibration: bool = True


ANY_LEARNER = (
    RunKind("acc", "classes", learned_rates=True),
    RunKind("mse", "real", learned_rates=True),
)
"""What the runs of a project with several learners and data sets log, of which each logs its part."""


def kind_of(learner: TaskLearner, pictures: bool) -> RunKind:
    """Return what a learner's runs with an `EpisodeDashboard` log.

    Args:
        learner: The learner.
        pictures: Whether its inputs are pictures.
    """
    likelihood = likelihood_of(learner.loss_fn)
    classes = likelihood in ("categorical", "bernoulli")
    real = needs_same_shape(learner.loss_fn) and not classes
    return RunKind(
        metric="acc" if classes else "mse" if real else None,
        uncertainty="classes" if classes else "real" if learner.has_noise and likelihood == "gaussian" else None,
        adapts=learner.eval_inner_steps > 0,
        inner_gradients=_takes_gradients(learner),
        pictures=pictures if classes else real,
        learned_rates=bool(learned_rates(learner)),
        diagnostics=learner.diagnostic_names,
        calibration=likelihood != "bernoulli" or _num_outputs(learner) == 1,
    )


def _num_outputs(learner: TaskLearner) -> int:
    """Return the size of the model's last parameter, which is that of its outputs."""
    return len(list(learner.model.parameters())[-1])


def _takes_gradients(learner: TaskLearner) -> bool:
    if isinstance(learner, AmortizedMAML):
        return learner.eval_inner_steps > 1  # the first step is the generated one
    if isinstance(learner, ImplicitMAML) and learner.inner_solver != "gradient_descent":
        return False
    return isinstance(learner, GradientLearner) and learner.eval_inner_steps > 0
