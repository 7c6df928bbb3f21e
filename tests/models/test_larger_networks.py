"""What all larger networks have in common: precision, recording, batch statistics, unequal tasks, checkpoints."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_meta import (
    MAML,
    Episode,
    ProtoNet,
    ResNet12,
    TextTransformer,
    VisionTransformer,
    WideResNet,
    collate_episodes,
)
from tests.checkpoints.saved import save
from tests.reference import assert_same, meta_gradient

SMALL = {"embedding_size": 8, "depth": 1, "heads": 2, "hidden": 8}
MODELS = {
    "resnet12": lambda **o: ResNet12(3, 1, (4, 4, 4, 4), image_size=16, **o),
    "wide": lambda **o: WideResNet(3, 1, depth=10, width_factor=1, **o),
    "texts": lambda **o: TextTransformer(3, 9, max_length=5, **SMALL, **o),
    "images": lambda **o: VisionTransformer(3, 1, 16, 8, **SMALL, **o),
}
NAMES = pytest.mark.parametrize("name", MODELS)
NORMALIZED = ("resnet12", "wide")


def inputs(name, *shape):
    if name != "texts":
        return torch.randn(*shape, 1, 16, 16)
    return {"input_ids": torch.randint(9, (*shape, 5)), "attention_mask": torch.randint(2, (*shape, 5))}


def task(name, support=6, query=5):
    labels = [torch.arange(size) % 3 for size in (support, query)]
    return Episode(inputs(name, support), labels[0], inputs(name, query), labels[1])


def batch(name):
    return collate_episodes([task(name) for _ in range(2)])


@pytest.mark.parametrize(
    ("name", "running"), [*((name, False) for name in MODELS), *((name, True) for name in NORMALIZED)]
)
def test_mixed_precision_is_close(name, running):
    model = MODELS[name](**({"running_statistics": True} if running else {}))
    statistics = "running" if running else "batch"
    together, alone = (
        MAML(model, inner_lr=0.01, compile=False, batch_statistics=statistics, task_chunk_size=size) for size in (2, 1)
    )
    data = batch(name)
    loss, expected = meta_gradient(together, data)
    with torch.autocast("cpu", torch.bfloat16):
        low, found = meta_gradient(together, data)
        _, ordinary = meta_gradient(alone, data)  # by an ordinary backward
    assert not torch.equal(low, loss)  # it did run in low precision
    torch.testing.assert_close(low, loss, rtol=0.05, atol=0.02)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    # Twelve layers of noise round to other gradients; tasks together must not be worse than one alone.
    likeness = [_cosine(gradient, expected) for gradient in (found, ordinary)]
    assert likeness[0] > (0.7 if name == "resnet12" else 0.95)
    assert likeness[0] > likeness[1] - 0.1


def _cosine(found, expected):
    return float(
        F.cosine_similarity(*(torch.cat([g[n].flatten() for n in expected]) for g in (found, expected)), dim=0)
    )


@NAMES
def test_steps_are_captured(name):
    learner = MAML(MODELS[name](), inner_lr=0.1)
    assert learner._mapping._world.state() == learner._mapping._world.state()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NORMALIZED)
def test_tasks_of_different_sizes_train_as_if_alone(name):
    learner = ProtoNet(MODELS[name](), compile=False)
    tasks = [task(name, *sizes) for sizes in [(3, 6), (7, 4), (3, 5)]]
    together = meta_gradient(learner, collate_episodes(tasks))[1]
    alone = [meta_gradient(learner, collate_episodes([one]))[1] for one in tasks]
    assert_same(together, {n: sum(own[n] for own in alone) / 3 for n in together}, 1e-9)


@pytest.mark.usefixtures("float64")
@NAMES
@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
def test_queries_influence_each_other_through_the_batchs_statistics_alone(name, statistics):
    running = {"running_statistics": True} if name in NORMALIZED and statistics == "running" else {}
    learner = ProtoNet(MODELS[name](**running), batch_statistics=statistics).eval()
    first = batch(name)
    other = batch(name).query_x
    if name == "texts":
        changed = {k: torch.cat([first.query_x[k][:, :1], other[k][:, 1:]], 1) for k in other}
    else:
        changed = torch.cat([first.query_x[:, :1], other[:, 1:]], 1)
    outputs = [learner.predict_step(first._replace(query_x=x))[:, 0] for x in (first.query_x, changed)]
    independent = statistics != "batch" or name not in NORMALIZED
    assert torch.allclose(*outputs) == independent


@NAMES
def test_checkpoints_hold_all_that_a_model_is_made_of(name, tmp_path):
    options = {"drop_rate": 0.2} | ({"running_statistics": True} if name in NORMALIZED else {})
    learner = ProtoNet(MODELS[name](**options))
    loaded = ProtoNet.load_from_checkpoint(save(learner, tmp_path))
    assert repr(loaded.model) == repr(learner.model)
    assert_same(dict(loaded.model.state_dict()), dict(learner.model.state_dict()))
