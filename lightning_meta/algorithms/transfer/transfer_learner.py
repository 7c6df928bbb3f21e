"""`TransferLearner`: the base of learners that train as ordinary classifiers and are evaluated on tasks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from lightning_meta.arguments import check_optional_count
from lightning_meta.data.episodic import NWayDataModule
from lightning_meta.episodes import Episode, MetaParameters, TaskResult
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners import SupportClassLearner, module_part
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.feature_size import feature_size


class TransferLearner(SupportClassLearner):
    """Base of classifiers that learn features from all training classes at once, without tasks.

    Training minimizes the loss of a classifier over all training classes, on batches that a data module with
    ``joint_batch_size`` serves as the queries of one task (`JointBatches`); the support set of this task only tells the
    number of classes. In validation, test and `adapt` a task has the classes of its support set, any number, and the
    features stay as they are.

    A new algorithm implements `class_scores`, and `adapt_task` and `query_output` for evaluation.

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        num_train_classes: The number of training classes, of which the data module knows it as ``num_train_classes``.
            None: the learner is only evaluated, with a model that was trained elsewhere.
        num_features: The number of features that the model gives; None: the outputs of its last linear layer.
        **options: As in `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range, or the model has no linear layer and ``num_features`` is None.
            When training starts, if the data module serves tasks, or has another number of training classes.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.
    """

    has_bias = True
    """Whether the classifier of the training classes has a bias."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        num_train_classes: int | None = None,
        num_features: int | None = None,
        **options: Any,
    ) -> None:
        check_optional_count("num_train_classes", num_train_classes, least=2)
        check_optional_count("num_features", num_features)
        super().__init__(model, loss_fn, **options)
        self.num_train_classes = num_train_classes
        self.num_features = num_features
        self.classifier: nn.Linear | None = None
        if num_train_classes is not None:
            self.num_features = feature_size(model, num_features, "learns a classifier of features")
            classifier = nn.Linear(self.num_features, num_train_classes, bias=self.has_bias)
            like = next(model.parameters(), None)
            self.classifier = classifier if like is None else classifier.to(like)

    @abstractmethod
    def class_scores(self, meta: MetaParameters, head: Vector, features: Tensor) -> Tensor:
        """Return a classifier's scores, ``[examples, classes]``.

        Args:
            meta: The learner's trainable parameters by name.
            head: The classifier's ``weight`` ``[classes, features]`` and, with `has_bias`, ``bias`` ``[classes]``.
            features: ``[examples, features]``.
        """

    def task_loss(self, meta: MetaParameters, task: Episode) -> tuple[Tensor, TaskResult]:
        """Return the loss of the classifier of all training classes on the queries, and the report."""
        self._check_classes(task.support_y.shape[-1])
        features = self.features(meta, task.query_x)
        output = self.class_scores(meta, module_part(meta, "classifier"), features)  # [query, classes]
        loss = self.loss(output, task.query_y, task.query_mask)
        return loss, TaskResult(loss, output[None], loss.new_zeros(0))

    def features(self, meta: MetaParameters, x: Any) -> Tensor:
        """Return the model's features, ``[examples, features]``.

        Raises:
            ValueError: If they have another shape.
        """
        return self.embeddings(meta, x, self.num_features)

    def check_data(self, data: Any) -> None:
        """Raise a ValueError unless the data module serves batches of as many classes as the classifier has."""
        name, module = type(self).__name__, type(data).__name__
        if data is None:  # loaders were given; `task_loss` finds what is wrong with their batches
            return
        if not isinstance(data, NWayDataModule):
            raise ValueError(
                f"{name} trains on labelled examples of all training classes at once, which {module} does not serve: "
                "use a data module of labelled classes, such as EpisodicDataModule, with joint_batch_size=128"
            )
        if data.joint_batch_size is None:
            raise ValueError(
                f"{name} trains on examples of all training classes at once, and {module} serves tasks: set its "
                "joint_batch_size, such as joint_batch_size=128"
            )
        self._check_classes(data.num_train_classes)

    def _check_classes(self, found: int) -> None:
        if found != self.num_train_classes:
            raise ValueError(
                f"num_train_classes={self.num_train_classes} of {type(self).__name__}, but training batches have "
                f"{found} classes: set num_train_classes={found}, or if these are tasks, serve batches of all training "
                "classes by the data module's joint_batch_size"
            )
