"""`SupportClassLearner`: the base of classifiers for any number of ways."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_meta.episodes import Support
from lightning_meta.learners.task_learner import TaskLearner


class SupportClassLearner(TaskLearner):
    """Base of metric-based and closed-form classifiers: a task has the classes of its support set.

    Per-task functions get the support labels as one-hot rows ``[support, ways]``; the rows of padding are 0. They
    return scores ``[query, ways]``.
    """

    label_cure = "give the support set an example of every class of the query set"

    def prepare_support(self, support: Support) -> Support:
        """Return the support set with one-hot labels."""
        one_hot = F.one_hot(support.y, self._ways(support.y))  # [..., support, ways]
        return support._replace(y=one_hot if support.mask is None else one_hot * support.mask[..., None])

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
