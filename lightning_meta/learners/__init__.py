"""The bases of all algorithms."""

from lightning_meta.learners.adapted_task import AdaptedTask
from lightning_meta.learners.bayesian_learner import BayesianLearner
from lightning_meta.learners.gradient_learner import GradientLearner
from lightning_meta.learners.per_task import module_part
from lightning_meta.learners.posterior_learner import PosteriorLearner
from lightning_meta.learners.support_class_learner import SupportClassLearner
from lightning_meta.learners.task_learner import TaskLearner
from lightning_meta.learners.unrolled_learner import UnrolledLearner

__all__ = [
    "AdaptedTask",
    "BayesianLearner",
    "GradientLearner",
    "PosteriorLearner",
    "SupportClassLearner",
    "TaskLearner",
    "UnrolledLearner",
    "module_part",
]
