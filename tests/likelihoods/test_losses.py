"""Label smoothing beside torch's own, over the classes that have a score."""

import pytest
import torch
from torch import nn
from torch.func import grad

from lightning_meta import Baseline, Episode, ProtoMAML, ProtoNet
from lightning_meta.likelihoods.losses import masked_mean

SMOOTHED = nn.CrossEntropyLoss(label_smoothing=0.2)
THERE = torch.tensor([0, 2, 3])  # of four classes


def with_absent(scores):
    """Scores of the classes that are there, ``[examples, 3]``, among four of which the second is absent."""
    return torch.full((len(scores), 4), -torch.inf, dtype=scores.dtype).index_copy(1, THERE, scores)


def test_labels_are_smoothed_over_the_classes_that_have_a_score():
    scores, labels = torch.randn(7, 3, dtype=torch.float64), torch.randint(3, (7,))
    mask = torch.tensor([True] * 5 + [False] * 2)
    for kept, each in ((slice(None), None), (slice(5), mask)):

        def loss(scores, each=each):
            return masked_mean(SMOOTHED, with_absent(scores), THERE[labels], each)

        def expected(scores, kept=kept):
            return SMOOTHED(scores[kept], labels[kept])

        torch.testing.assert_close(loss(scores), expected(scores))
        torch.testing.assert_close(grad(loss)(scores), grad(expected)(scores))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_with_all_classes_it_is_torch_s(shape):
    scores, labels = torch.randn(9, 4, *shape, dtype=torch.float64), torch.randint(4, (9, *shape))
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.3, ignore_index=2)
    torch.testing.assert_close(masked_mean(loss_fn, scores, labels, None), loss_fn(scores, labels))
    kept = torch.arange(9) < 6
    torch.testing.assert_close(masked_mean(loss_fn, scores, labels, kept), loss_fn(scores[:6], labels[:6]))


def test_a_query_of_an_absent_class_has_an_infinite_loss():
    assert masked_mean(SMOOTHED, with_absent(torch.randn(1, 3)), torch.tensor([1]), None) == torch.inf


@pytest.mark.parametrize("cls", [ProtoNet, ProtoMAML, Baseline])
def test_an_absent_class_changes_no_task(cls):
    model = nn.Linear(2, 4)
    learner = cls(model, SMOOTHED).eval()
    x, y, query_x = torch.randn(1, 6, 2), torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.randn(1, 6, 2)
    expected = learner.evaluate(Episode(x, y, query_x, y))
    found = learner.evaluate(Episode(x, THERE[y], query_x, THERE[y]))
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.outputs[..., THERE], expected.outputs)
