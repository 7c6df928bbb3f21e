"""A model adapted to one task."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_meta.episodes import MetaParameters, Support
from lightning_meta.execution.attention import differentiable_attention
from lightning_meta.learners.export import export_predictor
from lightning_meta.learners.per_task import PerTaskFunctions
from lightning_meta.likelihoods.losses import likelihood_of
from lightning_meta.likelihoods.predictive import Likelihood, Prediction, Samples, mean_output, predict


class AdaptedTask:
    """What `TaskLearner.adapt` returns: call it on inputs.

    It has copies of what training changes, so that training may continue while it is in use. Frozen parameters are the
    learner's own.

    Attributes:
        state: The adapted state, in the algorithm's own form; for MAML a dictionary of parameters.

    Args:
        learner: Whose task it is.
        meta: The learner's parameters, and the model's frozen ones and buffers, named as in the learner.
        state: See above.
        support: The support set, as per-task functions get it.
        support_y: The support set's targets.
    """

    def __init__(
        self, learner: PerTaskFunctions, meta: MetaParameters, state: Any, support: Support, support_y: Any
    ) -> None:
        self.state = state
        self._learner = learner
        self._meta = meta
        self._support = support
        self._support_y = support_y
        self._loss_fn = learner.loss_fn

    def __call__(self, x: Any) -> Tensor:
        """Return logits or regression outputs ``[query, ...]`` for inputs ``[query, ...]``.

        For Bayesian learners the posterior-predictive mean: the logarithm of mean probabilities, or the mean output.
        """
        return mean_output(likelihood_of(self._loss_fn), self.samples(x))

    def samples(self, x: Any) -> Samples:
        """Return draws from the posterior over models, as their outputs on inputs ``[query, ...]``."""
        with torch.no_grad(), differentiable_attention():
            return self._learner.evaluation_samples(self._meta, self.state, self._support, x)

    def predict(self, x: Any) -> Prediction:
        """Return the predictive mean and its uncertainty for inputs ``[query, ...]``."""
        return self.prediction_of(self.samples(x))

    def prediction_of(self, samples: Samples) -> Prediction:
        """Return the predictive mean and its uncertainty from draws that `samples` returned."""
        likelihood: Likelihood | None = likelihood_of(self._loss_fn)
        if likelihood is None and _are_labels(self._support_y, samples.outputs[0]):
            likelihood = "categorical"
        return predict(likelihood, samples, self._learner.draws_together)

    def state_dict(self) -> dict[str, Any]:
        """Return the adapted model's parameters and buffers, for ``load_state_dict`` of a plain copy of the model.

        The copy computes what the task does in ``eval()`` with ``batch_statistics="running"``, or without batch
        normalization. With ``"batch"`` its batch normalization must be in ``train()``, and everything else in
        ``eval()``. No plain model normalizes as ``"support"`` does; use `export`.

        Returns:
            Tensors by their names in the model's ``state_dict()``.

        Raises:
            TypeError: If a task is not the model with other parameters, as those of Bayesian learners and of
                classifiers for any number of ways.
        """
        adapted = self._learner.adapted_parameters(self._meta, self.state)
        if adapted is None:
            raise TypeError(
                f"a task of {type(self._learner).__name__} is not the model with other parameters, so that it has no "
                "state_dict(): use export(example_x), which returns the adapted model as a program, or the attribute "
                "state"
            )
        model = self._learner.model
        values = {**self._learner.model_parameters(self._meta), **adapted}
        # Shared tensors have several names, and the values have the first.
        first = {id(own): name for name, own in (*model.named_parameters(), *model.named_buffers())}
        own_values = model.state_dict(keep_vars=True)
        return {name: values[first[id(own)]] if id(own) in first else own for name, own in own_values.items()}

    def export(self, example_x: Any) -> ExportedProgram:
        """Return a program that computes what calling the task does, and needs neither model nor learner.

        Call it as ``program.module()(x)``, with any number of queries. ``torch.export.save`` writes it to a file, which
        ``torch.export.load`` reads without this package. Random draws, as of some Bayesian learners, are part of the
        program. With ``batch_statistics="support"`` it takes queries one by one.

        Args:
            example_x: Inputs ``[query, ...]``, a tensor or a pytree, for shapes and dtypes. Call ``eval()`` of the
                learner before ``adapt`` if the model has dropout, which is part of the program otherwise.

        Raises:
            ValueError: If the model's operations depend on values of tensors or on the number of queries.
        """
        learner = copy.copy(self._learner)  # which takes no `vmap`, whose sizes could not change
        learner.execution = replace(learner.execution, task_chunk_size=1)
        likelihood = likelihood_of(self._loss_fn)

        def predictor(values: Any, x: Any) -> Tensor:
            meta, state, support = values
            return mean_output(likelihood, learner.evaluation_samples(meta, state, support, x))

        values = dict(self._meta), self.state, self._support
        return export_predictor(predictor, values, example_x, learner.batch_statistics == "support")


def _are_labels(targets: Any, output: Tensor) -> bool:
    return isinstance(targets, Tensor) and not targets.is_floating_point() and output.ndim == targets.ndim + 1
