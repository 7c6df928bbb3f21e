"""Training steps may be recorded and repeated, with the same results, as long as nothing else changes."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from lightning_meta import (
    MAML,
    MLP,
    Conv4,
    Episode,
    collate_episodes,
)
from lightning_meta.execution.capture import recorder
from lightning_meta.inner import FirstOrder
from tests.execution.capture.recorded import change_parameters, check, count_traces, make_batch, recordings
from tests.reference import assert_same, loop_meta_gradient, meta_gradient
from tests.registry import every

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(autouse=True)
def _recorded_at_once(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)


@pytest.fixture
def batch():
    return make_batch()


@pytest.mark.parametrize(
    "norm", [lambda: nn.BatchNorm1d(6), lambda: nn.LayerNorm(6), lambda: nn.GroupNorm(2, 6), nn.Identity]
)
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_recorded_maml_has_the_loops_gradient_also_for_new_parameters_and_tasks(norm, chunk):
    model = nn.Sequential(nn.Linear(1, 6), norm(), nn.Tanh(), nn.Linear(6, 1))
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, task_chunk_size=chunk)
    check(learner, model, make_batch(), steps=2)
    change_parameters(model)
    check(learner, model, make_batch(), steps=2)
    check(learner, model, make_batch(3), steps=2)
    sizes = 1 if chunk == 1 else 2
    assert len(recordings(learner)) == sizes


def test_recorded_images_have_the_loops_gradient():
    model, labels = Conv4(5, filters=4), torch.arange(5).expand(4, 5)
    for seed in range(3):
        torch.manual_seed(seed)
        batch = Episode(torch.rand(4, 5, 1, 28, 28), labels, torch.rand(4, 5, 1, 28, 28), labels)
        learner = MAML(model, inner_lr=0.1)
        check(learner, model, batch)
        assert len(recordings(learner)) == 1


@every(costly=True)
def test_every_learner_repeats_its_step_draws_included(entry):
    options, batch = {"inner_lr": 0.05, "inner_steps": 2}, entry.batch()
    recorded, plain = (entry.learner(compile=choice, **options) for choice in (None, False))
    for _ in range(3):
        plain.load_state_dict(recorded.state_dict())
        found, expected = [], []
        for learner, results in ((recorded, found), (plain, expected)):
            torch.manual_seed(1)
            results += meta_gradient(learner, batch)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
        assert_same(found[1], expected[1])
        change_parameters(recorded)
        batch = entry.batch()
    assert len(recordings(recorded)) == 1
    assert plain._mapping._recorder is None


def test_dropout_draws_what_it_would_and_anew_in_every_step(batch):
    model = nn.Sequential(nn.Linear(1, 20), nn.Dropout(0.5), nn.Linear(20, 1))
    learners = [MAML(model, nn.MSELoss(), compile=choice).train() for choice in (None, False)]
    losses = []
    for learner in learners:
        torch.manual_seed(1)
        losses.append([float(meta_gradient(learner, batch)[0]) for _ in range(4)])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4
    learners[0].eval()
    assert float(meta_gradient(learners[0], batch)[0]) == float(meta_gradient(learners[1].eval(), batch)[0])


def test_ragged_tasks_with_masks():
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    tasks = [Episode(*[torch.randn(size, 1) for size in (n, n, 6, 6)]) for n in (3, 5, 4)]
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1)
    alone = [loop_meta_gradient(model, nn.MSELoss(), collate_episodes([task]), 0.1, 1)[1] for task in tasks]
    expected = {name: sum(gradient[name] for gradient in alone) / 3 for name in alone[0]}
    for _ in range(2):
        assert_same(meta_gradient(learner, collate_episodes(tasks))[1], expected)
    assert recordings(learner)


def test_mixed_precision_has_a_recording_of_its_own(batch):
    model = MLP(hidden=[16]).float()
    batch = Episode(*[leaf.float() for leaf in batch[:4]])
    learner, plain = (MAML(model, nn.MSELoss(), inner_lr=0.1, compile=choice) for choice in (None, False))
    full = meta_gradient(learner, batch)[1]
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = meta_gradient(learner, batch)[1], meta_gradient(plain, batch)[1]
        assert_same(found, expected)
        assert any(not torch.equal(found[name], full[name]) for name in full)
        assert_same(meta_gradient(learner, batch)[1], full)
    assert len(recordings(learner)) == 2


def test_recordings_follow_buffers_frozen_parameters_and_attributes(batch):
    model = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.LeakyReLU(), nn.Linear(4, 1))
    model[3].weight.requires_grad_(False)
    recorded, plain = (
        MAML(model, nn.MSELoss(), inner_lr=0.1, batch_statistics="running", compile=choice) for choice in (None, False)
    )

    def grow_behind_autograd():
        model[1].running_var.data = 3 * model[1].running_var

    changes = [
        lambda: None,
        lambda: model[1].running_mean.add_(0.5),
        lambda: model[3].weight.add_(1),
        lambda: setattr(model[2], "negative_slope", 0.5),
        lambda: setattr(model[1], "running_mean", torch.full((4,), 3.0)),
        lambda: setattr(model[3], "weight", nn.Parameter(torch.ones(1, 4), requires_grad=False)),
        grow_behind_autograd,
        lambda: model[1].running_var.data.mul_(2),
        lambda: setattr(model[1], "eps", 0.1),
    ]
    losses = set()
    for change in changes:
        change()
        for _ in range(2):
            found, expected = meta_gradient(recorded, batch), meta_gradient(plain, batch)
            torch.testing.assert_close(found[0], expected[0])
            assert_same(found[1], expected[1])
        losses.add(float(found[0]))
    assert len(losses) == len(changes)
    # What was changed in place, where autograd does not count it, is seen by the recording itself.
    assert len(recordings(recorded)) == len(changes) - 1


def test_recordings_follow_the_learners_own_settings(batch):
    model = MLP(hidden=[4])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1)
    check(learner, model, batch)
    learner.inner_steps = 2
    check(learner, model, batch, steps=2)
    learner.meta_gradient = FirstOrder()
    check(learner, model, batch, steps=2, first_order=True)
    learner.loss_fn = nn.L1Loss()
    check(learner, model, batch, steps=2, first_order=True)


def test_recordings_follow_the_epochs_of_maml_plus_plus(batch, monkeypatch):
    model = MLP(hidden=[4])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, first_order_epochs=1)
    check(learner, model, batch, steps=2, first_order=True)
    monkeypatch.setattr(MAML, "current_epoch", 1)
    check(learner, model, batch, steps=2)
    assert len(recordings(learner)) == 2
    multi = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, multi_step_loss_epochs=2)
    plain = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, multi_step_loss_epochs=2, compile=False)
    losses = set()
    for epoch in (0, 1, 2, 3):
        monkeypatch.setattr(MAML, "current_epoch", epoch)
        for _ in range(2):
            loss, gradient = meta_gradient(multi, batch)
            assert_same(gradient, meta_gradient(plain, batch)[1])
        losses.add(float(loss))
    assert len(losses) == len(recordings(multi)) == 3


FACTOR = 1.0


class ByOuterVariables(MLP):
    shift = 0.0

    def forward(self, x):
        return super().forward(x) * FACTOR + self.shift


def scaled_loss(output, target):
    return FACTOR * nn.functional.mse_loss(output, target)


@pytest.mark.parametrize("mode", [None, "record"])
def test_global_variables_and_class_attributes_are_followed(batch, monkeypatch, mode):
    learners = [
        MAML(ByOuterVariables(hidden=[4]), nn.MSELoss(), inner_lr=0.1, compile=mode),
        MAML(MLP(), scaled_loss, compile=mode),
    ]
    for learner in learners:
        with monkeypatch.context() as changes:
            check(learner, learner.model, batch, lr=learner.inner_lr)
            changes.setitem(globals(), "FACTOR", 2.0)
            check(learner, learner.model, batch, lr=learner.inner_lr)
            changes.setattr(ByOuterVariables, "shift", 3.0)
            check(learner, learner.model, batch, lr=learner.inner_lr)
        assert recordings(learner) == []
        if mode == "record":
            assert len(learner._mapping._guarded.recordings) >= 2
    for power in (1, 2):  # two functions with one code
        learner.loss_fn = lambda output, target, power=power: ((output - target).abs() ** power).mean()
        check(learner, learner.model, batch, lr=learner.inner_lr)


class Counting(MLP):
    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


class RandomInPython(MLP):
    def forward(self, x):
        return super().forward(x) * random.random()


class Opaque(MLP):
    def __init__(self):
        super().__init__(hidden=[4])
        self.state = iter([])


class Branching(MLP):
    def forward(self, x):
        output = super().forward(x)
        return output if output.sum() > 0 else -output


def test_what_may_change_unseen_is_not_recorded(batch):
    hooked = MLP(hidden=[4])
    hooked.register_forward_hook(lambda module, inputs, output: output * 2)
    for model in (Counting(hidden=[4]), RandomInPython(hidden=[4]), Opaque(), hooked):
        learner = MAML(model, nn.MSELoss())
        for _ in range(3):
            meta_gradient(learner, batch)
        assert recordings(learner) == []


def test_models_that_branch_on_values_are_not_recorded(batch):
    model = Branching(hidden=[4])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, task_chunk_size=1)
    check(learner, model, batch)
    assert recordings(learner) == []


def test_subclasses_that_redefine_per_task_functions_are_not_recorded(batch):
    class Halved(MAML):
        factor = 0.5

        def task_loss(self, meta, task):
            loss, result = super().task_loss(meta, task)
            return self.factor * loss, result

    class Logging(MAML):
        def training_step(self, batch, batch_idx):
            self.seen = batch_idx
            return super().training_step(batch, batch_idx)

    model = MLP(hidden=[4])
    halved, logging, plain = (cls(model, nn.MSELoss(), inner_lr=0.1) for cls in (Halved, Logging, MAML))
    expected = meta_gradient(plain, batch)[1]
    for factor in (0.5, 0.25):
        Halved.factor = factor
        assert_same(meta_gradient(halved, batch)[1], {name: factor * slope for name, slope in expected.items()})
    assert recordings(halved) == []
    check(logging, model, batch)
    assert len(recordings(logging)) == 1


def test_infinite_scores_of_absent_classes_are_recorded_once(monkeypatch):
    traces = count_traces(monkeypatch)
    labels = torch.randint(0, 2, (4, 6))
    batch = Episode(torch.randn(4, 6, 2), labels, torch.randn(4, 6, 2), labels)
    model = nn.Linear(2, 3, bias=False)

    def run(mode):
        learner = MAML(model, inner_lr=0.1, compile=mode)
        learner.call_model = lambda parameters, x: MAML.call_model(learner, parameters, x) + MASK
        return learner

    MASK = torch.tensor([0.0, 0.0, -torch.inf])
    # The mask is the test's own function, so it is recorded as if it were the library's.
    recorded, plain = run(None), run(False)
    recorded._mapping._follow(recorded.execution)
    recorded._mapping._world.state = lambda: ()
    recorded._mapping._recorder._state = recorded._mapping._world.state
    for _ in range(4):
        found, expected = meta_gradient(recorded, batch), meta_gradient(plain, batch)
        torch.testing.assert_close(found[0], expected[0])
        assert_same(found[1], expected[1])
    assert len(traces) == len(recordings(recorded)) == 1


class Cached(nn.Module):
    """Makes a tensor at its first call and keeps it."""

    def __init__(self):
        super().__init__()
        self.inner, self.offset = nn.Linear(1, 1), None

    def forward(self, x):
        if self.offset is None:
            self.offset = torch.arange(len(x)).to(x)[:, None]
        return self.inner(x) + self.offset


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", [None, "record"])
def test_a_model_that_keeps_a_tensor_of_its_first_call_keeps_a_real_one(mode):
    batch, model = Episode(*[torch.randn(4, 5, 1) for _ in range(4)]), Cached()
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, compile=mode)
    progress = MAML(nn.Linear(1, 1), nn.MSELoss())
    progress.training_step(batch, 0)
    learner._mapping.resume(progress._mapping.progress(step=1))
    for _ in range(3):
        learner.training_step(batch, 0)
    assert torch.equal(model.offset + 0, torch.arange(5).to(model.offset)[:, None])
    check(learner, model, batch)


def test_a_users_task_loss_is_recorded_on_request(batch):
    class Halved(MAML):
        def task_loss(self, meta, task):
            loss, result = super().task_loss(meta, task)
            return 0.5 * loss, result

    model = MLP(hidden=[4])
    learner = Halved(model, nn.MSELoss(), inner_lr=0.1, compile="record")
    expected = loop_meta_gradient(model, nn.MSELoss(), batch, 0.1, 1)[1]
    for _ in range(2):
        assert_same(meta_gradient(learner, batch)[1], {name: 0.5 * slope for name, slope in expected.items()})
    assert len(learner._mapping._guarded.recordings) == 1


class ScaledInputs(MLP):
    def forward(self, x):
        return super().forward(x * FACTOR)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*the step cannot be compiled")
@pytest.mark.slow  # tracing takes seconds for each
@every()
def test_on_request_every_learner_has_the_plain_steps_gradient_with_a_users_model(entry):
    torch.compiler.reset()
    options, batch = {"inner_lr": 0.05, "inner_steps": 2}, entry.batch()
    model = ScaledInputs(1, entry.outputs, hidden=[4])
    recorded, plain = (entry.learner(copy.deepcopy(model), compile=c, **options) for c in ("record", False))
    recorded.load_state_dict(plain.state_dict())
    for _ in range(30):
        results = []
        for learner in (recorded, plain):
            torch.manual_seed(1)
            results.append(meta_gradient(learner, batch))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-10, atol=1e-12)
        assert_same(results[0][1], results[1][1])
    assert recorded._mapping._guarded.worked == entry.traceable


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_on_request_mixed_precision_is_recorded_with_its_conversions(batch):
    model = ByOuterVariables(hidden=[16]).float()
    batch = Episode(*[leaf.float() for leaf in batch[:4]])
    learner, plain = (MAML(model, nn.MSELoss(), inner_lr=0.1, compile=choice) for choice in ("record", False))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = meta_gradient(learner, batch)[1], meta_gradient(plain, batch)[1]
        assert_same(found, expected)
        assert_same(meta_gradient(learner, batch)[1], meta_gradient(plain, batch)[1], tolerance=1e-5)
    assert len(learner._mapping._guarded.recordings) == 2
