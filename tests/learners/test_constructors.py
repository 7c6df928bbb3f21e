"""Every learner hands over what its constructor is given."""

from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_meta import ABML, ANIL, BOIL, MAML, AmortizedMAML, BayesianMAML, ImplicitMAML, MetaSGD, Reptile
from lightning_meta.execution.options import Execution
from lightning_meta.inner import FirstOrder

OPTIONS = {
    "inner_lr": 0.123,
    "inner_steps": 7,
    "eval_inner_steps": 9,
    "first_order": True,
    "inner_optimizer": "adam",
    "lr_scheduler_interval": "step",
    "task_chunk_size": 3,
    "batch_statistics": "support",
    "log_step_metrics": True,
    "normalize_steps": True,
    "observation_std": 0.25,
}


@pytest.mark.parametrize(
    "cls",
    [MAML, ANIL, BOIL, MetaSGD, Reptile, ImplicitMAML, BayesianMAML, ABML, AmortizedMAML],
    ids=lambda c: c.__name__,
)
def test_every_argument_arrives(cls):
    model, loss_fn = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), nn.MSELoss()
    parser = ArgumentParser()
    taken = parser.add_class_arguments(cls)  # what the command line takes
    options = {name: value for name, value in OPTIONS.items() if name in taken}
    learner = cls(
        model,
        loss_fn,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.5),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 4),
        compile=True,
        **options,
    )
    assert learner.execution == Execution(task_chunk_size=3, compile=True)
    options.pop("task_chunk_size")
    assert learner.model is model
    assert learner.loss_fn is loss_fn
    noise = options.pop("observation_std", None)
    assert noise is None or learner.noise.observation_std == noise
    rule = options.pop("inner_optimizer", None)
    assert rule is None or type(learner.inner_optimizer).__name__ == "Adam"
    first_order = options.pop("first_order", None)
    assert first_order is None or learner.meta_gradient == FirstOrder()
    assert {name: getattr(learner, name) for name in options} == options
    configured = learner.configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert configured["optimizer"].param_groups[0]["lr"] == 0.5
    assert type(configured["lr_scheduler"]["scheduler"]) is torch.optim.lr_scheduler.StepLR
    assert configured["lr_scheduler"]["interval"] == "step"


def test_an_evaluation_of_more_steps_than_training_is_taken():
    learner = MAML(nn.Linear(2, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=1, eval_inner_steps=3)
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    assert torch.equal(learner.adapt(x, y)(x), learner.adapt(x, y, steps=3)(x))
    assert not torch.equal(learner.adapt(x, y)(x), learner.adapt(x, y, steps=1)(x))


@pytest.mark.parametrize(("checkpointed", "expected"), [(False, None), (True, False)])
def test_inner_loops_that_are_computed_again_are_not_recorded(checkpointed, expected):
    learner = MAML(nn.Linear(2, 1), nn.MSELoss(), checkpoint_inner_loop=checkpointed)
    assert learner._traits().execution.compile == expected
