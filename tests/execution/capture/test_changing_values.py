"""Whatever ``forward``, the loss or an update rule reads: a value that changes in mid-training is used at once."""

from __future__ import annotations

import contextlib
import copy
import importlib
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import (
    MAML,
    MLP,
    Episode,
)
from lightning_meta.execution.capture import guarded, recorder
from tests.execution.capture.changing_values import LEARNERS, MODULE, PATCHES, ClassRate, Clock, Scaled, set_all
from tests.reference import assert_same, meta_gradient
from tests.registry import every

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # Raised inside torch's compiler.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace"),
    pytest.mark.filterwarnings("ignore:.*the step cannot be compiled and runs as it is"),
    pytest.mark.filterwarnings("ignore:.*lru_cache"),
]


@pytest.fixture
def batch():
    return Episode(*[torch.randn(3, size, 1) for size in (4, 4, 5, 5)])


@pytest.fixture(autouse=True)
def _from_the_start(monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 1)
    monkeypatch.setitem(sys.modules, "elsewhere", MODULE)
    monkeypatch.setenv("LIGHTNING_META_TEST_VALUE", "1.0")
    monkeypatch.setattr(guarded, "compiled_trace", lambda graph, examples: graph)  # guards are the same
    torch.compiler.reset()
    set_all(1.0)
    ClassRate.level = 1.0
    yield
    set_all(1.0)


MODES = [
    None,
    *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("record", True)),
]  # the last has the guards of the one before


def assert_alike(learner, plain, batch):
    torch.manual_seed(1)
    expected = meta_gradient(plain, batch)
    torch.manual_seed(1)
    found = meta_gradient(learner, batch)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-12)
    assert_same(found[1], expected[1])
    return expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", LEARNERS)
def test_a_changed_value_is_used_at_once(case, mode, batch):
    torch.manual_seed(0)
    plain = LEARNERS[case](compile=False)
    learner = LEARNERS[case](compile=mode)
    learner.load_state_dict(plain.state_dict())
    before = [assert_alike(learner, plain, batch) for _ in range(3)][-1]
    set_all(2.0)
    ClassRate.level = 2.0
    after = [assert_alike(learner, plain, batch) for _ in range(2)][-1]
    assert any(not torch.equal(before[1][name], after[1][name]) for name in after[1])


@pytest.mark.parametrize("mode", MODES)
def test_a_clock_is_asked_in_every_step(mode, batch):
    learner = MAML(Clock(), nn.MSELoss(), compile=mode)
    assert len({float(learner.training_step(batch, 0).detach()) for _ in range(6)}) == 6


class Drawing(Scaled):
    """Skips a layer now and then, by random numbers from outside torch."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def factor(self):
        return 1.0 if self.generator() < 0.5 else 0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["numpy generator", "numpy", "python"])
def test_random_numbers_from_outside_torch_are_those_of_the_plain_step(kind, mode, batch):
    losses = []
    for choice in (mode, False):
        random.seed(0)
        np.random.seed(0)
        own = np.random.default_rng(0)
        generator = {"numpy generator": own.random, "numpy": np.random.rand, "python": random.random}[kind]
        torch.manual_seed(0)
        learner = MAML(Drawing(generator), nn.MSELoss(), compile=choice, task_chunk_size=1)
        losses.append([float(learner.training_step(batch, 0).detach()) for _ in range(20)])
    torch.testing.assert_close(losses[0], losses[1])
    assert len(set(losses[1])) > 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", PATCHES)
def test_patches_are_used_at_once(where, mode, batch, monkeypatch):
    model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Flatten(), MLP(3, 1, hidden=[]))
    learner, plain = (MAML(model, nn.MSELoss(), inner_lr=0.1, compile=choice) for choice in (mode, False))
    before = [assert_alike(learner, plain, batch) for _ in range(4)][-1]
    assert mode is not None or len(learner._mapping._recorder.recordings()) == 1
    with contextlib.ExitStack() as removed:
        PATCHES[where](model, monkeypatch, removed)
        set_all(2.0)
        after = assert_alike(learner, plain, batch)
        assert float(after[0]) != float(before[0])
        set_all(3.0)
        assert float(assert_alike(learner, plain, batch)[0]) != float(after[0])
        monkeypatch.undo()


def test_a_reloaded_module_is_used_at_once(tmp_path, monkeypatch, batch):
    source = """
from torch import nn
class Model(nn.Linear):
    def forward(self, x):
        return {} * super().forward(x)
"""
    file = Path(tmp_path) / "reloaded_model.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file.write_text(source.format(1.0))
    module = importlib.import_module("reloaded_model")
    for mode in (None, "record", True):
        model = module.Model(1, 1)
        learner, plain = (MAML(model, nn.MSELoss(), compile=choice) for choice in (mode, False))
        before = [assert_alike(learner, plain, batch) for _ in range(3)][-1]
        file.write_text(source.format(2.0))
        model.__class__ = importlib.reload(module).Model
        assert float(assert_alike(learner, plain, batch)[0]) != float(before[0])
        file.write_text(source.format(1.0))
        importlib.reload(module)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda slope: nn.LeakyReLU(slope), "negative_slope"),
        (lambda slope: nn.Softshrink(slope), "lambd"),
    ],
)
def test_tensors_that_torch_makes_numbers_of_are_read_anew(make, name, batch):
    slope = torch.tensor(0.3)
    model = nn.Sequential(nn.Linear(1, 4), make(slope), nn.Linear(4, 1))
    model.note = slope[None]  # [1], which is compared as well
    learner, plain = (MAML(model, nn.MSELoss(), inner_lr=0.1, compile=choice) for choice in (None, False))
    for value in (0.3, 0.1, 0.05):
        slope.data.fill_(value)
        for _ in range(3):
            assert_alike(learner, plain, batch)


def test_parts_that_change_their_names_are_seen():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
    layer.dropout1.p = 0.5
    model = nn.Sequential(layer, nn.Flatten())
    batch = Episode(*[torch.randn(3, 4, size) for size in (2, 8, 2, 8)])
    batch = batch._replace(support_x=torch.randn(3, 4, 2, 4), query_x=torch.randn(3, 4, 2, 4))
    learner, plain = (MAML(model, nn.MSELoss(), compile=choice) for choice in (None, False))
    for _ in range(4):
        assert_alike(learner, plain, batch)
    layer.dropout1, layer.dropout2 = layer.dropout2, layer.dropout1
    for _ in range(4):
        assert_alike(learner, plain, batch)


class CountingCalls(Scaled):
    """Changes itself in every call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def factor(self):
        self.calls += 1
        return 0.9**self.calls


@pytest.mark.parametrize("mode", MODES)
def test_what_forward_counts_is_counted_once(mode, batch):
    ends = []
    for choice in (mode, False):
        torch.manual_seed(0)
        learner = MAML(CountingCalls(), nn.MSELoss(), compile=choice)
        losses = [float(learner.training_step(batch, 0).detach()) for _ in range(12)]
        ends.append((losses, learner.model.calls))
    assert ends[0][1] == ends[1][1]
    torch.testing.assert_close(ends[0][0], ends[1][0])


def test_innocent_changes_leave_recording_on(batch):
    model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    learner, plain = (MAML(model, nn.MSELoss(), compile=choice) for choice in (None, False))
    for _ in range(3):
        assert_alike(learner, plain, batch)
    (recording,) = learner._mapping._recorder.recordings()
    nn.functional.__warningregistry__ = {}  # as a warning there leaves it
    copy.deepcopy(learner)
    pickle.dumps(learner)
    learner.train(False).train(True)
    assert_alike(learner, plain, batch)
    assert learner._mapping._recorder.recordings() == [recording]
    del nn.functional.__warningregistry__


def test_what_cannot_be_compared_is_left_to_python(batch):
    model = nn.Sequential(nn.Linear(1, 1))
    learner, plain = (MAML(model, nn.MSELoss(), compile=choice) for choice in (None, False))
    model[0].register_buffer("unused", torch.eye(2).to_sparse())
    for _ in range(3):
        assert_alike(learner, plain, batch)
    del model[0].unused
    model[0].itself = {}
    model[0].itself["again"] = model[0].itself
    for _ in range(3):
        assert_alike(learner, plain, batch)
    assert learner._mapping._recorder.recordings() == []


@every(quick=["MAML", "Reptile", "ABML"])
def test_200_steps_of_the_default_end_where_plain_ones_do(entry, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 10)
    torch.manual_seed(0)
    plain = entry.learner(inner_lr=0.01, inner_steps=1, compile=False)
    learner = entry.learner(inner_lr=0.01, inner_steps=1)
    learner.load_state_dict(plain.state_dict())
    ends = []
    for own in (plain, learner):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
        for _ in range(200):
            batch = entry.batch(2, support=3, query=4)
            optimizer.zero_grad()
            own.training_step(batch, 0).backward()
            optimizer.step()
        ends.append(own.state_dict())
    assert len(learner._mapping._recorder.recordings()) == 1
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-9, atol=1e-11)
