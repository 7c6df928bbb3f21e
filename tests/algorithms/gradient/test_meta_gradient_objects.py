"""``meta_gradient=...`` beside the flags that choose the same."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from lightning_meta import ANIL, CAVIA, MAML, MLP, Episode, ProtoMAML
from lightning_meta.inner import (
    Adam,
    Chain,
    Checkpointed,
    ClipNorm,
    FirstOrder,
    Unrolled,
    WeightDecay,
)
from tests.reference import assert_same, loop_meta_gradient, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")

OBJECTS = {
    "unrolled": (Unrolled(), {}),
    "checkpointed": (Checkpointed(), {"checkpoint_inner_loop": True}),
    "first order": (FirstOrder(), {"first_order": True}),
    "first order at first": (FirstOrder(2), {"first_order_epochs": 2}),
    "then checkpointed": (
        FirstOrder(2, then=Checkpointed()),
        {"first_order_epochs": 2, "checkpoint_inner_loop": True},
    ),
}


@pytest.fixture
def batch():
    return Episode(*[torch.randn(3, size, 1) for size in (5, 5, 6, 6)])


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_is_its_flags(name, batch, monkeypatch):
    given, flags = OBJECTS[name]
    model = MLP(hidden=[5])
    ours = MAML(model, nn.MSELoss(), 0.1, 4, meta_gradient=given)
    theirs = MAML(model, nn.MSELoss(), 0.1, 4, **flags)
    assert ours.meta_gradient == theirs.meta_gradient == given
    for epoch in range(4):
        monkeypatch.setattr(MAML, "current_epoch", epoch)
        first_order = name.startswith("first") and (name == "first order" or epoch < 2)
        first_order |= name == "then checkpointed" and epoch < 2
        assert ours.first_order == theirs.first_order == first_order
        expected = loop_meta_gradient(model, nn.MSELoss(), batch, 0.1, 4, first_order)
        for learner in (ours, theirs):
            found = meta_gradient(learner, batch)
            torch.testing.assert_close(found[0], expected[0])
            assert_same(found[1], expected[1])


@pytest.mark.parametrize("given", [Unrolled(), FirstOrder(), Checkpointed()], ids=str)
@pytest.mark.parametrize("flag", [{"first_order": True}, {"first_order_epochs": 1}, {"checkpoint_inner_loop": True}])
def test_an_object_beside_a_flag_is_refused(given, flag):
    with pytest.raises(ValueError, match=r"meta_gradient=.* replaces first_order.*: leave these out"):
        MAML(MLP(), nn.MSELoss(), meta_gradient=given, **flag)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"meta_gradient": "first_order"}, TypeError, "meta_gradient='first_order' must be Unrolled"),
        ({"meta_gradient": FirstOrder}, TypeError, "must be Unrolled"),
        ({"first_order": True, "checkpoint_inner_loop": True}, ValueError, "leave one of them out"),
        ({"meta_gradient": Checkpointed(), "multi_step_loss_epochs": 2}, ValueError, "leave one of them out"),
        ({"meta_gradient": Checkpointed(), "compile": True}, ValueError, "compile=True"),
        ({"meta_gradient": FirstOrder(2), "compile": True}, ValueError, "compile=True"),
    ],
    ids=str,
)
def test_contradictions_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        MAML(MLP(), nn.MSELoss(), **options)
    with pytest.raises(ValueError, match="epochs=0 must be an integer of at least 1"):
        FirstOrder(0)


@pytest.mark.parametrize("given", [given for given, _ in OBJECTS.values()], ids=list(OBJECTS))
def test_objects_are_kept_in_checkpoints(given, tmp_path, batch):
    rule = Chain([ClipNorm(0.5), WeightDecay(0.1)], Adam(beta1=0.5))
    learner = ANIL(MLP(hidden=[5]), nn.MSELoss(), 0.1, inner_steps=2, meta_gradient=given, inner_optimizer=rule)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(learner)
    trainer.save_checkpoint(tmp_path / "learner.ckpt")
    loaded = ANIL.load_from_checkpoint(tmp_path / "learner.ckpt")
    assert loaded.meta_gradient == given
    assert repr(loaded.inner_optimizer) == repr(rule)
    assert type(loaded.inner_optimizer.rule) is Adam
    assert [vars(transform) for transform in loaded.inner_optimizer.transforms] == [{"max_norm": 0.5}, {"decay": 0.1}]
    assert_same(meta_gradient(loaded.double(), batch)[1], meta_gradient(learner, batch)[1])


@pytest.mark.parametrize("base", [MAML, CAVIA, ProtoMAML])
def test_an_inner_loop_that_checkpoints_would_not_call_is_refused(base):
    class Own(base):
        def inner_loop(self, meta, support, steps):
            yield from super().inner_loop(meta, support, steps)

    Own(MLP(2, 3, hidden=[4]), meta_gradient=Unrolled())
    with pytest.raises(TypeError, match=r"do not call Own\.inner_loop.* override steps_from"):
        Own(MLP(2, 3, hidden=[4]), meta_gradient=Checkpointed())
