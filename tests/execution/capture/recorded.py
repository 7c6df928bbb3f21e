"""Batches, and what a learner has recorded of them."""

from __future__ import annotations

import torch

from lightning_meta import Episode
from lightning_meta.execution.capture.graph import Recording
from tests.reference import assert_same, loop_meta_gradient, meta_gradient


def make_batch(tasks=4):
    return Episode(*[torch.randn(tasks, size, 1) for size in (5, 5, 6, 6)])


def recordings(learner):
    return learner._mapping._recorder.recordings()


def check(learner, model, batch, lr=0.1, steps=1, first_order=False):
    """The recording step and one that repeats it have the loop's gradient."""
    expected = loop_meta_gradient(model, learner.loss_fn, batch, lr, steps, first_order)
    for _ in range(2):
        loss, gradient = meta_gradient(learner, batch)
        torch.testing.assert_close(loss, expected[0])
        assert_same(gradient, expected[1])


def change_parameters(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1).add_(0.01)


def count_traces(monkeypatch):
    traces = []
    init = Recording.__init__

    def counted(self, *arguments, **options):
        traces.append(self)
        init(self, *arguments, **options)

    monkeypatch.setattr(Recording, "__init__", counted)
    return traces
