"""Inputs of all kinds: dictionaries, token ids, attention, dropout, custom losses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, Episode
from tests.reference import assert_same, loop_meta_gradient, meta_gradient


class TokenClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.attention(self.embedding(x["ids"]), src_key_padding_mask=~x["mask"])
        weights = x["mask"][..., None].to(hidden.dtype)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


def token_batch(tasks=3, support=4, query=5, length=6):
    def inputs(n):
        mask = torch.arange(length) < torch.randint(2, length + 1, (tasks, n, 1))
        return {"ids": torch.randint(11, (tasks, n, length)), "mask": mask}

    return Episode(inputs(support), torch.randint(3, (tasks, support)), inputs(query), torch.randint(3, (tasks, query)))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("chunk", [None, 1])
def test_dictionaries_of_tokens_through_attention(chunk):
    model, batch = TokenClassifier(), token_batch()
    learner = MAML(model, inner_lr=0.1, inner_steps=2, task_chunk_size=chunk)
    _, gradient = meta_gradient(learner, batch)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = loop_meta_gradient(model, nn.CrossEntropyLoss(), batch, 0.1, 2)[1]
    assert_same(gradient, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_attention_adapts_in_evaluation(mode):
    learner, batch = MAML(TokenClassifier(), inner_lr=0.1, eval_inner_steps=3), token_batch()
    expected = learner.predict_step(batch)
    learner.eval()
    with mode():
        outputs = learner.predict_step(batch)
        task = learner.adapt(*(torch.utils._pytree.tree_map(lambda leaf: leaf[0], part) for part in batch[:2]))
        alone = task(torch.utils._pytree.tree_map(lambda leaf: leaf[0], batch.query_x))
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(outputs[0], alone)
    assert not outputs.requires_grad


def test_dropout_differs_between_tasks():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1))
    batch = Episode(torch.ones(2, 1, 64), torch.ones(2, 1, 1), torch.ones(2, 1, 64), torch.ones(2, 1, 1))
    learner = MAML(model, nn.MSELoss(), inner_lr=0.01)
    outputs = learner.predict_step(batch)
    assert not torch.equal(outputs[0], outputs[1])
    learner.eval()
    outputs = learner.predict_step(batch)
    assert torch.equal(outputs[0], outputs[1])


def test_binary_cross_entropy_reports_accuracy():
    model = nn.Linear(2, 1)
    x = torch.randn(3, 8, 2)
    y = (x.sum(-1, keepdim=True) > 0).float()
    learner = MAML(model, nn.BCEWithLogitsLoss(), inner_lr=1.0, inner_steps=50)
    outputs = learner.predict_step(Episode(x, y, x, y))
    metrics = learner.task_metrics(outputs, y, None)
    assert list(metrics) == ["acc"]
    torch.testing.assert_close(metrics["acc"], ((outputs > 0) == (y > 0)).float().mean((1, 2)))
