from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, Conv4, Episode, Reptile, Support, collate_episodes
from lightning_meta.execution.capture import recorder
from lightning_meta.execution.capture.graph import Recording
from lightning_meta.execution.options import Execution
from lightning_meta.execution.plan import ModelSize, drops, plan
from lightning_meta.models import DropBlock2d
from tests.reference import assert_same, meta_gradient


def batch(tasks=4, features=1):
    return Episode(*[torch.randn(tasks, 5, size) for size in (features, 1, features, 1)])


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_tiny_work_is_told_from_work_that_needs_all_threads():
    def single_thread(model, batch):
        return plan(ModelSize.of(model), batch, Execution(), threads=2, steps=1, shared_out=False).single_thread

    assert single_thread(MLP(), batch(25))
    assert not single_thread(MLP(in_features=784, hidden=[512, 512]), batch(25, 784))
    assert not single_thread(Conv4(), Episode(*[torch.zeros(1, 1, 1, 28, 28)] * 4))


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, DropBlock2d])
def test_a_model_drops_if_it_draws_random_numbers(kind, rate):
    model, before = nn.Sequential(nn.Conv2d(1, 2, 3), kind(rate)), torch.get_rng_state()
    model(torch.ones(3, 1, 8, 8))
    assert drops(model) != torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize(("chunk", "expected"), [(None, 1), (4, 2)])
def test_tiny_tasks_run_on_one_thread_unless_the_user_maps_them(chunk, expected):
    seen = set()

    class Noting(MLP):
        def forward(self, x):
            seen.add(torch.get_num_threads())
            return super().forward(x)

    learner = MAML(Noting(), nn.MSELoss(), task_chunk_size=chunk)
    learner.output_shape(Support(torch.zeros(1, 1, 1), None))
    seen.clear()
    learner.training_step(batch(), 0)
    learner.evaluate(batch())
    assert seen == {expected}
    assert torch.get_num_threads() == 2


def test_an_execution_replaced_between_two_steps_is_followed():
    calls = 0

    class Counting(MLP):
        def forward(self, x):
            nonlocal calls
            calls += 1
            return super().forward(x)

    learner, tasks = MAML(Counting(hidden=[4]), nn.MSELoss(), compile=False), batch(4)
    learner.output_shape(Support(torch.zeros(1, 1, 1), None))
    expected = meta_gradient(learner, tasks)[1]
    for chunk, pieces in ((None, 1), (1, 4), (2, 2), (3, 2), (None, 1)):
        learner.execution = Execution(task_chunk_size=chunk, compile=False)
        calls = 0
        assert_same(meta_gradient(learner, tasks)[1], expected, 1e-5)
        assert calls == 2 * pieces  # on the support set and on the queries
        calls = 0
        learner.evaluate(tasks, record=(1,))
        assert calls == 2 * pieces


def test_a_way_to_compute_steps_replaced_in_mid_training_is_followed(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 1)
    learner, tasks = MAML(MLP(hidden=[4]), nn.MSELoss(), compile=False), batch(4)
    expected = meta_gradient(learner, tasks)[1]
    assert learner._mapping._recorder is None
    learner.execution = Execution()
    for _ in range(4):
        assert_same(meta_gradient(learner, tasks)[1], expected, 1e-5)
    assert len(learner._mapping._recorder.recordings()) == 1
    learner.execution = Execution(compile=False)
    monkeypatch.setattr(Recording, "__call__", None)  # whoever repeats a recording now fails
    assert_same(meta_gradient(learner, tasks)[1], expected, 1e-5)
    with pytest.raises(ValueError, match="threads=0 must be an integer of at least 1"):
        Execution(threads=0)


@pytest.mark.usefixtures("_two_threads")
def test_threads_are_restored_after_an_error():
    learner = MAML(MLP(), nn.MSELoss())
    learner.output_shape(Support(torch.zeros(1, 1, 1), None))
    learner.call_model = lambda parameters, x: x @ torch.zeros(7, 7)
    with pytest.raises(RuntimeError):
        learner.training_step(batch(), 0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_loss_without_parameters_has_no_gradient(chunk):
    learner = MAML(MLP(), lambda output, target: target.mean(), task_chunk_size=chunk)
    learner.training_step(batch(), 0).backward()
    assert all(not p.grad.any() for p in learner.parameters())


def test_ragged_tasks_may_meet_batch_normalization_of_features():
    tasks = [Episode(torch.randn(n, 2), torch.randn(n, 1), torch.randn(3, 2), torch.randn(3, 1)) for n in (4, 5)]
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    loss = MAML(model, nn.MSELoss()).training_step(collate_episodes(tasks), 0)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("tasks", [1, 3])
def test_reports_keep_no_graph(tasks):
    reports = []
    learner = MAML(MLP(), nn.MSELoss(), compile=False)
    learner.after_batch = reports.append
    learner.training_step(batch(tasks), 0)
    assert not any(leaf.requires_grad for leaf in (reports[0].loss, reports[0].outputs, reports[0].support_losses))


@pytest.mark.parametrize("cls", [MAML, Reptile])
def test_one_task_needs_no_vectorizing(cls):
    """A model that branches on values works in batches of one task, however the tasks are mapped."""

    class Branching(MLP):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else -super().forward(x)

    learner = cls(Branching(), nn.MSELoss())
    learner.training_step(batch(1), 0).backward()
    assert torch.isfinite(learner.evaluate(batch(1)).loss).all()
    with pytest.raises(RuntimeError) as caught:
        learner.evaluate(batch(2))
    assert "task_chunk_size=1" in caught.value.__notes__[-1]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no more"), None])
def test_running_out_of_memory_names_the_cure(error):
    class Greedy(MLP):
        def forward(self, x):
            if error is not None and self.greedy:
                raise error
            return super().forward(x) + (torch.empty(2**60).sum() if self.greedy else 0)

    model = Greedy()
    model.greedy = False
    learner = MAML(model, nn.MSELoss())
    learner.output_shape(Support(torch.zeros(1, 1, 1), None))
    model.greedy = True
    with pytest.raises(RuntimeError) as caught:
        learner.training_step(batch(), 0)
    assert "task_chunk_size" in caught.value.__notes__[-1]
    assert "checkpoint_inner_loop=True" in caught.value.__notes__[-1]
