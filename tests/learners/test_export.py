"""Exported tasks compute what the tasks do, for any number of queries, and without this package."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_meta import ABML, MAML, ProtoNet, collate_episodes
from lightning_meta.models import MLP, Conv4
from tests.learners.test_adapted_weights import INNER, disturb, normalized
from tests.registry import LEARNERS, every


def outputs(function, x, seed=3):
    torch.manual_seed(seed)
    return function(x)


def reloaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@every(costly=True)
@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
def test_a_program_computes_what_the_task_does(entry, statistics):
    """With the same draws; where queries are taken one by one they come in another order, and must be too small."""
    certain = entry.certain if statistics == "support" else {}
    learner = entry.learner(normalized(entry.outputs), batch_statistics=statistics, **INNER, **certain).eval()
    one = entry.task()
    task = learner.adapt(one.support_x, one.support_y)
    sets = [torch.randn(size, 1) for size in (2, 5, 9)]
    expected = [outputs(task, x) for x in sets]
    program = reloaded(task.export(one.query_x))
    for x, output in zip(sets, expected, strict=True):
        torch.testing.assert_close(outputs(program, x), output, rtol=1e-4, atol=1e-5)


@every(costly=True)
def test_a_program_needs_no_unchanged_learner(entry):
    learner, one = entry.learner(**INNER).eval(), entry.task()
    task = learner.adapt(one.support_x, one.support_y)
    expected = outputs(task, one.query_x)
    disturb(learner)
    torch.testing.assert_close(outputs(task, one.query_x), expected)
    program = task.export(one.query_x[:1])  # one query is an example too
    torch.testing.assert_close(outputs(program.module(), one.query_x), expected)
    torch.testing.assert_close(outputs(task, one.query_x), expected)  # the export left no trace


ALONE = """
import sys
sys.modules["lightning_meta"] = sys.modules["lightning"] = None
import torch
for name, x, expected in torch.load("expected.pt"):
    torch.manual_seed(3)
    torch.testing.assert_close(torch.export.load(name + ".pt2").module()(x), expected)
    print(name)
assert not any(name.startswith("lightning") for name, module in sys.modules.items() if module is not None)
"""


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_programs_run_where_the_package_is_not_installed(slow, tmp_path):
    chosen = [entry for entry in LEARNERS if entry.costly_tests_are_slow == slow]
    expected = []
    for entry in chosen:
        one = entry.task()
        task = entry.learner(**INNER).eval().adapt(one.support_x, one.support_y)
        torch.export.save(task.export(one.query_x), tmp_path / f"{entry.name}.pt2")
        x = torch.randn(11, 1)
        expected.append((entry.name, x, outputs(task, x)))
    torch.save(expected, tmp_path / "expected.pt")
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": tmp_path, "env": elsewhere, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", ALONE], **options)
    assert done.stdout.split() == [entry.name for entry in chosen], done.stderr


@every(lambda entry: entry.takes_steps)
def test_with_statistics_of_the_support_queries_are_apart(entry):
    learner = entry.learner(normalized(entry.outputs), batch_statistics="support", **INNER, **entry.certain).eval()
    one = entry.task()
    task = learner.adapt(one.support_x, one.support_y)
    alone = torch.cat([task(x[None]) for x in one.query_x])
    torch.testing.assert_close(task(one.query_x), alone, rtol=1e-4, atol=1e-5)
    evaluated = learner.evaluate(collate_episodes([one])).outputs[0, -1]
    torch.testing.assert_close(evaluated, alone, rtol=1e-4, atol=1e-5)


def test_draws_are_part_of_the_program():
    task = ABML(MLP(hidden=[6]), nn.MSELoss(), initial_log_std=0.0).adapt(torch.randn(5, 1), torch.randn(5, 1))
    x = torch.randn(4, 1)
    program = task.export(x).module()
    assert torch.equal(outputs(program, x), outputs(program, x))
    assert not torch.equal(outputs(program, x), outputs(program, x, seed=4))


@pytest.mark.parametrize("statistics", ["batch", "support"])
def test_images(statistics):
    learner = MAML(Conv4(3, filters=4), inner_lr=0.1, inner_steps=2, batch_statistics=statistics)
    task = learner.adapt(torch.rand(6, 1, 28, 28), torch.arange(6) % 3)
    program = task.export(torch.rand(4, 1, 28, 28)).module()
    for size in (1, 7):
        x = torch.rand(size, 1, 28, 28)
        torch.testing.assert_close(program(x), task(x))


class Words(nn.Module):
    """Takes a dictionary of token numbers and masks, with attention and dropout."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens, mask = x["tokens"], x["mask"]
        hidden = self.attend(self.embed(tokens), src_key_padding_mask=~mask)
        return self.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def words(examples):
    mask = torch.arange(5) < torch.randint(1, 6, (examples, 1))
    return {"tokens": torch.randint(10, (examples, 5)), "mask": mask}


@pytest.mark.parametrize("statistics", ["batch", "support"])
@pytest.mark.parametrize("cls", [MAML, ProtoNet])
def test_inputs_may_be_trees(cls, statistics):
    task = cls(Words(), batch_statistics=statistics).eval().adapt(words(6), torch.arange(6) % 3)
    program = reloaded(task.export(words(4)))
    for size in (1, 7):
        x = words(size)
        torch.testing.assert_close(program(x), task(x), rtol=1e-4, atol=1e-5)


def test_a_program_has_the_adapted_parameters_alone():
    model = MLP(hidden=[6])
    program = MAML(model, nn.MSELoss()).adapt(torch.randn(5, 1), torch.randn(5, 1)).export(torch.randn(4, 1))
    sizes = sorted(value.numel() for value in program.state_dict.values())
    assert sizes == sorted(p.numel() for p in model.parameters())


def test_tasks_adapted_in_inference_mode_are_exported():
    x = torch.randn(5, 1)
    with torch.inference_mode():
        task = MAML(MLP(hidden=[6]), nn.MSELoss()).adapt(x, torch.randn(5, 1))
    torch.testing.assert_close(task.export(x).module()(x), task(x))


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else -super().forward(x)


class Fixed(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.arange(int(x.shape[0]))[:, None].sum(1, keepdim=True) * (x.shape[0] == 5)


@pytest.mark.parametrize("model", [Branching(3, 1), Fixed(3, 1)], ids=lambda model: type(model).__name__)
def test_a_model_that_cannot_be_traced_is_refused(model):
    task = MAML(model, nn.MSELoss(), task_chunk_size=1).adapt(torch.randn(5, 3), torch.randn(5, 1))
    with pytest.raises(ValueError, match=r"cannot be exported for inputs such as \(5, 3\).*must not depend on values"):
        task.export(torch.randn(5, 3))
