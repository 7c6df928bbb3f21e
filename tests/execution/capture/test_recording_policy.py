"""When steps are recorded, what recordings cost, and what is said of them."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import threading
import weakref

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP
from lightning_meta.execution.capture import ClosedWorld, graph, recorder
from lightning_meta.execution.capture.graph import Recording
from tests.execution.capture.recorded import change_parameters, check, count_traces, make_batch, recordings
from tests.reference import meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(autouse=True)
def _recorded_at_once(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)


@pytest.fixture
def batch():
    return make_batch()


def test_a_recording_that_differs_is_found_out(batch, monkeypatch):
    true_call = Recording.__call__

    def wrong(self, tensors):
        gradients, result = true_call(self, tensors)
        return {name: 1.1 * gradient for name, gradient in gradients.items()}, result

    monkeypatch.setattr(Recording, "__call__", wrong)
    model = MLP(hidden=[4])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1)
    with pytest.warns(UserWarning, match="differs from the step itself"):
        meta_gradient(learner, batch)
    check(learner, model, batch)
    assert recordings(learner) == []


def test_recording_waits_for_enough_alike_steps(batch, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 2)
    learner = MAML(MLP(hidden=[4]), nn.MSELoss())
    for expected in (0, 0, 1, 1):
        meta_gradient(learner, batch)
        assert len(recordings(learner)) == expected
    for tasks in range(1, 30):  # ever new shapes push the oldest out
        learner.training_step(make_batch(tasks), 0)
    assert len(recordings(learner)) == 0
    assert len(learner._mapping._recorder.progress().kinds) == recorder._MOST_KINDS


@pytest.mark.parametrize("every", [12, 20, 40])
def test_a_value_that_changes_every_few_steps_costs_two_recordings_at_most(batch, monkeypatch, every):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 10)
    traces = count_traces(monkeypatch)
    learner, losses = MAML(nn.Linear(1, 1), nn.MSELoss()), []
    for step in range(10 * every):
        learner.inner_rates.inner_lr = 0.1 / (1 + step // every)
        losses.append(float(learner.training_step(batch, 0).detach()))
    plain = MAML(learner.model, nn.MSELoss(), inner_lr=learner.inner_rates.inner_lr, compile=False)
    torch.testing.assert_close(losses[-1], float(plain.training_step(batch, 0).detach()))
    assert len(set(losses)) == 10
    assert 1 <= len(traces) <= 2


def test_sizes_that_never_repeat_long_enough_are_recorded_twice_at_most(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 10)
    traces = count_traces(monkeypatch)
    learner = MAML(nn.Linear(1, 1), nn.MSELoss())
    for step in range(120):
        learner.training_step(make_batch(2 + step % 8), 0)
    assert len(traces) <= 2


def test_a_recording_that_paid_for_itself_lets_the_next_be_made_as_soon(batch, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 3)
    monkeypatch.setattr(recorder, "_REPEATS_TO_PAY", 5)
    learner = MAML(nn.Linear(1, 1), nn.MSELoss())
    for _ in range(9):
        learner.training_step(batch, 0)
    for _ in range(4):
        learner.training_step(make_batch(3), 0)
    assert len(recordings(learner)) == 2


def test_steps_of_too_many_operations_are_left_to_python(batch, monkeypatch, caplog):
    monkeypatch.setattr(graph, "MOST_OPERATIONS", 300)
    for steps, expected in ((1, 1), (20, 0)):
        model = nn.Linear(1, 1)
        learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=steps)
        check(learner, model, batch, steps=steps)
        assert len(recordings(learner)) == expected
    assert "more than 300 operations" in caplog.text


def test_two_threads_that_record_leave_torch_as_it_was(batch):
    call = nn.Module.__call__
    learners = [MAML(MLP(hidden=[4]), nn.MSELoss(), inner_lr=0.1, inner_steps=3) for _ in range(4)]
    for learner in learners:
        learner.model.load_state_dict(learners[0].model.state_dict())
    threads = [threading.Thread(target=learner.training_step, args=(batch, 0)) for learner in learners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__call__ is call
    for learner in learners:
        check(learner, learner.model, batch, steps=3)


def test_a_look_at_the_world_waits_for_another_threads_trace(batch):
    # Tracing replaces `nn.Module.__getattr__` in all threads: a look during it would find torch changed.
    learner = MAML(MLP(hidden=[4]), nn.MSELoss(), inner_lr=0.1)
    world = ClosedWorld(learner, lambda: None)
    before = world.state()
    started, looked, during = threading.Event(), threading.Event(), []

    def function(shared, x):
        started.set()
        during.append(looked.wait(timeout=0.3))
        return learner.model(x)

    tracing = threading.Thread(target=Recording, args=(function, (None, torch.randn(2, 1)), False))
    tracing.start()
    assert started.wait(timeout=30)
    found = world.state()
    looked.set()
    tracing.join()
    assert found == before
    assert during == [False]


def test_nothing_of_a_learner_outlives_it(batch):
    class Big:
        pass

    seen = []

    def build(mode):
        big = Big()
        seen.append(weakref.ref(big))
        learner = MAML(
            nn.Linear(1, 1), lambda output, target: ((output - target) ** 2 + 0 * len(vars(big))).mean(), compile=mode
        )
        for _ in range(2):
            learner.training_step(batch, 0)

    build(None)
    gc.collect()
    assert seen[0]() is None


def test_copies_record_for_themselves(batch):
    model = MLP(hidden=[4])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1)
    check(learner, model, batch)
    for copied in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        assert recordings(copied) == []
        change_parameters(copied.model)
        check(copied, copied.model, batch)
        assert len(recordings(copied)) == 1


def caught(caplog):
    return [record.message for record in caplog.records if "raining steps are" in record.message]


class Custom(MAML):
    def task_loss(self, meta, task):
        return super().task_loss(meta, task)


def scaled_loss(output, target):
    return 2 * nn.functional.mse_loss(output, target)


class HoldingWhatever(nn.ReLU):
    pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MAML(MLP(hidden=[4]), nn.MSELoss()), "are recorded: [0-9]+ operations, in [0-9.]+ s"),
        (
            lambda: MAML(nn.Sequential(MLP(hidden=[4]), HoldingWhatever()), nn.MSELoss()),
            f'run by Python, because model.1 is of the class {__name__}.HoldingWhatever: compile="record"',
        ),
        (lambda: MAML(MLP(), scaled_loss), f"loss_fn is the function {__name__}.scaled_loss: compile="),
        (lambda: Custom(MLP(), nn.MSELoss()), "because Custom defines task_loss: compile="),
        (lambda: MAML(MLP(), scaled_loss, compile="record"), "are recorded under the guards of torch.compile, because"),
    ],
)
def test_the_first_step_says_once_which_way_steps_are_run(make, said, batch, caplog):
    learner = make()
    with caplog.at_level("INFO"):
        for _ in range(3):
            learner.training_step(batch, 0)
    (message,) = caught(caplog)
    assert re.search(said, message)


def test_plain_steps_need_no_word(batch, caplog):
    with caplog.at_level("INFO"):
        MAML(MLP(), scaled_loss, compile=False).training_step(batch, 0)
    assert caught(caplog) == []


@pytest.mark.parametrize("wrong", ["recrod", 1, 0.5])
def test_an_unknown_way_to_run_steps_is_refused(wrong):
    with pytest.raises(ValueError, match=f'compile={wrong!r} is not one of None, "record", True and False'):
        MAML(MLP(), nn.MSELoss(), compile=wrong)


def test_a_run_saved_again_before_its_first_step_keeps_what_was_recorded(batch):
    first, second = (MAML(MLP(hidden=[4]), nn.MSELoss()) for _ in range(2))
    first.training_step(batch, 0)
    progress = first._mapping.progress(step=1)
    assert progress[1]["kinds"]
    second._mapping.resume(progress)
    assert second._mapping.progress(step=1) == progress
