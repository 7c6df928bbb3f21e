"""Every learner hands over what its constructor is given."""

from __future__ import annotations

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_meta import MAML
from lightning_meta.cli import main
from lightning_meta.execution.options import Execution
from lightning_meta.inner import Checkpointed, FirstOrder, Unrolled
from tests.registry import every

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


@every()
def test_every_argument_arrives(entry):
    cls, loss_fn = entry.cls, entry.loss_fn()
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, entry.outputs))
    parser = ArgumentParser()
    taken = parser.add_class_arguments(cls)  # what the command line takes
    options = {name: value for name, value in OPTIONS.items() if name in taken}
    if entry.classes_only:
        options.pop("observation_std", None)  # which classes refuse
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


@every()
def test_a_misspelt_argument_is_an_error(entry, capsys):
    with pytest.raises(TypeError, match="task_chunk_sise"):
        entry.learner(task_chunk_sise=2)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--model={entry.cls.__name__}", "--model.model=MLP", "--model.task_chunk_sise=2"])
    assert stopped.value.code == 2
    assert "task_chunk_sise" in capsys.readouterr().err


def test_an_evaluation_of_more_steps_than_training_is_taken():
    learner = MAML(nn.Linear(2, 1), nn.MSELoss(), inner_lr=0.1, inner_steps=1, eval_inner_steps=3)
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    assert torch.equal(learner.adapt(x, y)(x), learner.adapt(x, y, steps=3)(x))
    assert not torch.equal(learner.adapt(x, y)(x), learner.adapt(x, y, steps=1)(x))


@pytest.mark.parametrize(("checkpointed", "expected"), [(False, None), (True, False)])
def test_inner_loops_that_are_computed_again_are_not_recorded(checkpointed, expected):
    learner = MAML(nn.Linear(2, 1), nn.MSELoss(), checkpoint_inner_loop=checkpointed)
    assert learner._traits().execution.compile == expected
    learner.meta_gradient = Unrolled() if checkpointed else Checkpointed()
    assert learner._traits().execution.compile == (None if checkpointed else False)
