"""What tells a checkpoint's training from a learner and a data module made otherwise."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, ImplicitMAML, MetaSGD, SinusoidDataModule, TabularTasksDataModule
from lightning_meta.checkpoints.differences import data_differences, learner_differences, parameter_differences
from lightning_meta.inner import Adam
from tests.registry import BY_NAME, LEARNERS

MLP_TEXT = {"class_path": "lightning_meta.models.MLP", "init_args": {"in_features": 1, "hidden": [8]}}


def checkpoint_of(learner, data=None):
    """What Lightning's checkpoint has of a learner and a data module."""
    content = {"state_dict": learner.state_dict(), "hyper_parameters": dict(learner.hparams)}
    content |= {} if data is None else {"datamodule_hyper_parameters": dict(data.hparams)}
    learner.on_save_checkpoint(content)
    return content


@pytest.mark.parametrize("case", LEARNERS, ids=lambda case: case.name)
def test_a_learner_does_not_differ_from_itself_made_again(case):
    assert learner_differences(checkpoint_of(case.learner()), case.learner()) == {}


def test_values_and_nested_values_that_differ_are_named():
    trained = checkpoint_of(MAML(MLP(hidden=[8]), nn.MSELoss(), inner_lr=0.1, inner_steps=2))
    own = MAML(MLP(hidden=[8, 4]), nn.MSELoss(), inner_lr=0.2, inner_steps=2, batch_statistics="support")
    assert learner_differences(trained, own) == {
        "batch_statistics": ("batch", "support"),
        "inner_lr": (0.1, 0.2),
        "model.hidden": ([8], [8, 4]),
    }
    strengths = checkpoint_of(ImplicitMAML(MLP(), prox_lambda={"*": 2.0}, cg_steps=3))
    found = learner_differences(strengths, ImplicitMAML(MLP(), prox_lambda=1.0))
    assert found == {"prox_lambda": ({"*": 2.0}, 1.0), "cg_steps": (3, 5)}


def test_other_ways_to_say_the_same_are_no_differences():
    own = MAML(MLP(hidden=(8,)), nn.CrossEntropyLoss(), inner_steps=1, adapt=["*"])
    text = {"model": MLP_TEXT, "loss_fn": None, "inner_steps": 1.0, "adapt": ("*",), "inner_lr": 0.01}
    assert learner_differences({"meta_learner_arguments": {}, "hyper_parameters": text}, own) == {}
    layers = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh())
    text = {"class_path": "torch.nn.Sequential", "modules": {}}
    text["modules"] = {
        "0": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 1, "out_features": 2, "bias": False}},
        "1": {"class_path": "torch.nn.Tanh"},
    }
    content = {"meta_learner_arguments": {}, "hyper_parameters": {"model": text}}
    assert learner_differences(content, MAML(layers)) == {}
    relu = MAML(nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU()))
    names = {"model.modules.1": (f"{nn.Tanh.__module__}.Tanh", f"{nn.ReLU.__module__}.ReLU")}
    assert learner_differences(content, relu) == names


def test_what_evaluation_alone_or_the_optimizer_uses_may_differ():
    trained = checkpoint_of(MAML(MLP(), eval_inner_steps=2, log_step_metrics=True, compile=True))
    own = MAML(MLP(), optimizer=partial(torch.optim.SGD, lr=1.0), task_chunk_size=3)
    assert learner_differences(trained, own) == {}


def test_what_a_checkpoint_does_not_know_is_no_difference():
    class Own(nn.Linear):
        """A class that checkpoints do not keep."""

    content = checkpoint_of(MAML(Own(1, 1), nn.MSELoss(), inner_optimizer=Adam()))
    assert "model" in content["meta_learner_left_out"]
    assert learner_differences(content, MAML(nn.Linear(1, 1), nn.MSELoss(), inner_optimizer=Adam())) == {}
    assert learner_differences({"meta_learner_arguments": {}}, MetaSGD(MLP(), inner_lr=0.3)) == {
        "inner_lr": (0.01, 0.3)
    }


def test_data_may_have_other_places_and_numbers_but_no_other_kind_of_tasks():
    learner = BY_NAME["MAML"].learner()
    trained = checkpoint_of(learner, SinusoidDataModule(shots=5, train_tasks=10, seed=1))
    assert data_differences(trained, SinusoidDataModule(shots=5, val_tasks=7, seed=2, eval_query_shots=3)) == {}
    assert data_differences(trained, SinusoidDataModule(shots=6)) == {"shots": (5, 6)}
    trained["datamodule_hyper_parameters"]["_class_path"] = "lightning_meta.SinusoidDataModule"
    assert data_differences(trained, SinusoidDataModule(shots=5)) == {}
    trained["datamodule_hyper_parameters"]["_class_path"] = "lightning_meta.TabularTasksDataModule"
    (found,) = data_differences(trained, SinusoidDataModule(shots=5)).items()
    assert found[0] == "class"
    assert found[1][0].endswith(TabularTasksDataModule.__name__)


def test_parameters_that_are_missing_left_over_or_of_another_shape_are_named():
    trained, own = {"a": torch.ones(2), "b": torch.ones(3)}, {"b": torch.ones(4), "c": torch.ones(1)}
    assert parameter_differences(trained, own) == [
        "the checkpoint lacks c",
        "the checkpoint has a, which the learner does not have",
        "b has the shape [3] in the checkpoint and [4] in the learner",
    ]
    assert parameter_differences(own, own) == []
