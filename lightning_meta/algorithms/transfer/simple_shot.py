"""SimpleShot: the nearest class mean of an ordinary classifier's features, centered and scaled to length 1.

Paper: Wang, Chao, Weinberger, van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
Learning", 2019, arXiv 1911.04623, section 3.

Training minimizes the cross-entropy of a linear classifier of all training classes on features f, without tasks. In a
task the features, of support examples and queries alike, are

    UN: x = f,        L2N: x = f / ‖f‖,        CL2N: x = (f − f̄) / ‖f − f̄‖

where f̄ is the mean of f over all examples of the training classes. A class's centroid is the mean of its support
examples' x, and a query has the class of the nearest centroid by Euclidean distance. Outputs are negative squared
distances, whose softmax gives probabilities.

Differences from the paper:
- The paper classifies; probabilities, for losses and uncertainty, are those of a prototypical network.
- Training goes through the training examples as the data module has them; the authors' schedule of 90 epochs with SGD
  is the configuration's choice.
- Batch normalization uses the statistics of the set at hand, in training, for f̄ and in tasks, unless
  ``batch_statistics`` says otherwise; the authors' uses running ones in tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_meta.algorithms.transfer.transfer_learner import TransferLearner
from lightning_meta.arguments import check_choice
from lightning_meta.data.episodic import NWayDataModule
from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.inner.vectors import Vector
from lightning_meta.learners.support_class_learner import without_absent
from lightning_meta.likelihoods import LossFunction
from lightning_meta.models.feature_size import feature_size
from lightning_meta.models.features import unit_length

Normalization = Literal["un", "l2n", "cl2n"]

_EXAMPLES = 256  # of which features are computed at once


class Centroids(NamedTuple):
    """One task's classes.

    Attributes:
        centroids: The means of transformed features, ``[ways, features]``.
        counts: The number of support examples of each class, ``[ways]``.
        center: f̄, ``[features]``; None where features are not centered.
    """

    centroids: Tensor
    counts: Tensor
    center: Tensor | None


class SimpleShot(TransferLearner):
    """Nearest centroids of transformed features of an ordinary classifier (Wang et al., 2019).

    The mean feature f̄ is measured on the data module's training examples: at the end of each training epoch and before
    each validation in training, and before ``Trainer.validate``, ``Trainer.test`` or ``Trainer.predict`` if it is not
    known. Checkpoints keep it. `measure_center` takes examples of your own.

    Args:
        model: Embeds examples, ``[examples, ...]`` to ``[examples, features]``.
        loss_fn: The mean loss over examples; None: ``nn.CrossEntropyLoss()``.
        num_train_classes: The number of training classes; None: the learner is only evaluated.
        normalization: The transform of features in tasks: "un" none, "l2n" length 1, "cl2n" centered, then length 1.
        **options: As in `TransferLearner` and `TaskLearner`.

    Raises:
        ValueError: If an argument is out of its range; in evaluation, if f̄ is needed and not known. When training
            starts, if the data module serves tasks, or has another number of training classes.
        TypeError: If the model has layers that cannot run per task, or an argument is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_meta import SimpleShot
        >>> learner = SimpleShot(nn.Linear(8, 16), num_train_classes=90)
        >>> learner.measure_center([torch.randn(100, 8)])  # trainer.fit does it
        >>> task = learner.adapt(torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
        >>> task(torch.randn(10, 8)).shape  # a score for each of a task's classes
        torch.Size([10, 3])
    """

    center: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module | LossFunction | None = None,
        num_train_classes: int | None = None,
        normalization: Normalization = "cl2n",
        **options: Any,
    ) -> None:
        super().__init__(model, loss_fn, num_train_classes=num_train_classes, **options)
        check_choice("normalization", normalization, Normalization)
        self.normalization = normalization
        unknown = None
        if normalization == "cl2n":
            self.num_features = feature_size(model, self.num_features, "centers features")
            unknown = next(model.parameters(), torch.empty(0)).new_full((self.num_features,), torch.nan)
        self.register_buffer("center", unknown)

    def class_scores(self, meta: MetaParameters, head: Vector, features: Tensor) -> Tensor:
        """Return the linear classifier's scores, ``[examples, classes]``."""
        return F.linear(features, head["weight"], head["bias"])

    def adapt_task(self, meta: MetaParameters, support: Support) -> Centroids:
        """Return the classes' centroids."""
        center = None if self.center is None else self.center.detach().clone()
        # The same for all tasks, and not a value of theirs; only evaluation comes here.
        if center is not None and bool(center.isnan().any()):
            raise ValueError(
                'normalization="cl2n" needs the mean feature of the training classes, which is not known yet: train, '
                "or validate or test with a data module of labelled classes, or call measure_center, or set "
                'normalization="l2n"'
            )
        features = self._transformed(self.features(meta, support.x), center)  # [support, features]
        return Centroids(*self.prototypes(features, support), center)

    def query_output(self, meta: MetaParameters, state: Centroids, x: Any) -> Tensor:
        """Return negative squared distances to the centroids, ``[query, ways]``; -inf for absent classes."""
        features = self._transformed(self.features(meta, x), state.center)  # [query, features]
        squared = (features[:, None] - state.centroids).square().sum(2)  # [query, ways]
        return without_absent(-squared, state.counts)

    @torch.no_grad()
    def measure_center(self, batches: Iterable[Any]) -> None:
        """Set f̄ to the mean feature of examples.

        Args:
            batches: Batches of inputs, ``[examples, ...]``, each pytree of tensors on the learner's device. On several
                devices each process has its share.
        """
        if self.center is None:
            return
        training = self.training
        self.eval()
        # Half precision could not count.
        total = torch.zeros_like(self.center, dtype=torch.promote_types(self.center.dtype, torch.float32))
        count = total.new_zeros(1)
        for x in batches:
            features = self.features({}, x).to(total)
            total, count = total + features.sum(0), count + len(features)
        self.train(training)
        sums = torch.cat([total, count])
        if self._trainer is not None:
            sums = self._trainer.strategy.reduce(sums, reduce_op="sum")
        self.center.copy_(sums[:-1] / sums[-1])

    # ---- Lightning's hooks, at which the center is measured. --------------------------------------------------

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Forget the center: the step changes the model, and a checkpoint may be saved after it."""
        if self.center is not None:
            self.center.fill_(torch.nan)

    def on_train_end(self) -> None:
        """Measure the center again: callbacks such as weight averaging may have changed the model."""
        if self.center is not None and self._data() is not None:
            self.center.fill_(torch.nan)
            self._measure()

    def on_validation_start(self) -> None:
        """Measure the center before a validation."""
        self._measure()

    def on_train_epoch_end(self) -> None:
        """Measure the center, for checkpoints."""
        self._measure()

    def on_test_start(self) -> None:
        """Measure the center if it is not known."""
        self._measure()

    def on_predict_start(self) -> None:
        """Measure the center if it is not known."""
        self._measure()

    def _data(self) -> NWayDataModule | None:
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, NWayDataModule) else None

    def _measure(self) -> None:
        """Measure the center if it is not known."""
        data = self._data()
        if self.center is None or data is None or not bool(self.center.isnan().any()):
            return
        with self.trainer.precision_plugin.forward_context():
            self.measure_center(self._own_share(data))

    def _own_share(self, data: NWayDataModule) -> Iterator[Any]:
        """Yield this process's share of the inputs of the training examples."""
        examples = data.joint_batches(_EXAMPLES)
        size, parts = examples.num_examples, len(examples)
        # Of equal size: batch normalization of a part of one example would fail.
        for part in range(self.trainer.global_rank, parts, self.trainer.world_size):
            x = examples.inputs(size * part // parts, size * (part + 1) // parts)
            yield tree_map(lambda leaf: leaf.to(self.device), self.trainer.precision_plugin.convert_input(x))

    def _transformed(self, features: Tensor, center: Tensor | None) -> Tensor:
        if self.normalization == "un":
            return features
        return unit_length(features if center is None else features - center)
