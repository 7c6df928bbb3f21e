"""`SupportClassLearner`: the base of classifiers for any number of ways."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_meta.episodes import Support
from lightning_meta.learners.task_learner import TaskLearner


class SupportClassLearner(TaskLearner):
    """Base of classifiers for any number of ways: a task has the classes of its support set.

    Per-task functions get the support labels as one-hot rows, see `one_hot`, and return scores ``[query, ways]``. A
    classifier with inner steps derives from `GradientLearner` too: ``class ProtoMAML(GradientLearner,
    SupportClassLearner)``.
    """

    label_cure = "give the support set an example of every class of the query set"

    def prepare_support(self, support: Support) -> Support:
        """Return the support set with one-hot labels."""
        return support._replace(y=F.one_hot(support.y, self._ways(support.y)))  # [..., support, ways]

    def one_hot(self, support: Support, dtype: torch.dtype) -> Tensor:
        """Return one task's labels as one-hot rows, ``[support, ways]``; the rows of padding are 0."""
        labels = support.y.to(dtype)
        return labels if support.mask is None else labels * support.mask[:, None]

    def prototypes(self, features: Tensor, support: Support) -> tuple[Tensor, Tensor]:
        """Return the mean of each class's features, ``[ways, features]``, and its number of examples, ``[ways]``.

        Args:
            features: The support set's features, ``[support, features]``.
            support: The task's support set, as per-task functions get it.
        """
        one_hot = self.one_hot(support, features.dtype)  # [support, ways]
        counts = one_hot.sum(0)  # [ways]
        return one_hot.mT @ features / counts.clamp(min=1)[:, None], counts

    def output_shape(self, support: Support) -> torch.Size:
        """Return ``[ways]``."""
        return torch.Size([self._ways(support.y)])

    def _ways(self, labels: Tensor) -> int:
        if labels.dtype != torch.int64 or int(labels.min()) < 0:
            raise ValueError(
                f"support_y is {labels.dtype} with the smallest value {labels.min()}: {type(self).__name__} needs "
                "class labels 0, 1, ... of dtype torch.int64"
            )
        return int(labels.max()) + 1


def without_absent(scores: Tensor, counts: Tensor) -> Tensor:
    """Return scores ``[query, ways]`` with -inf for classes without examples; ``counts`` are ``[ways]``."""
    return torch.where(counts > 0, scores, -torch.inf)
