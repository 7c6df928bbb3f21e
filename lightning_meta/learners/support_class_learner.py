"""`SupportClassLearner`: the base of classifiers for any number of ways."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_meta.episodes import Support
from lightning_meta.learners.task_learner import TaskLearner


class SupportClassLearner(TaskLearner):
    """Base of metric-based and closed-form classifiers: a task has the classes of its support set.

    Per-task functions get the support labels as one-hot rows, see `one_hot`, and return scores ``[query, ways]``.
    """

    label_cure = "give the support set an example of every class of the query set"

    def prepare_support(self, support: Support) -> Support:
        """Return the support set with one-hot labels."""
        return support._replace(y=F.one_hot(support.y, self._ways(support.y)))  # [..., support, ways]

    def one_hot(self, support: Support, dtype: torch.dtype) -> Tensor:
        """Return one task's labels as one-hot rows, ``[support, ways]``; the rows of padding are 0."""
        labels = support.y.to(dtype)
        return labels if support.mask is None else labels * support.mask[:, None]

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
