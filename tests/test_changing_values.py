"""Whatever ``forward``, the loss or an update rule reads: a value that changes in mid-training is used at once."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import functools
import importlib
import itertools
import os
import pickle
import random
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import (
    ABML,
    ANIL,
    BOIL,
    MAML,
    MLP,
    AmortizedMAML,
    BayesianMAML,
    Episode,
    ImplicitMAML,
    MetaSGD,
    Reptile,
)
from lightning_meta.execution.capture import guarded, recorder
from lightning_meta.inner import SGD, FirstOrder, Unrolled, UpdateRule
from lightning_meta.learners import per_task as learner_module
from lightning_meta.likelihoods.losses import masked_mean
from tests.reference import assert_same, meta_gradient

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # Raised inside torch's compiler.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace"),
    pytest.mark.filterwarnings("ignore:.*the step cannot be compiled and runs as it is"),
    pytest.mark.filterwarnings("ignore:.*lru_cache"),
]

GLOBAL = 1.0
IN_DICT, IN_LIST = {"value": 1.0}, [1.0]
OBJECT = types.SimpleNamespace(value=1.0)
MODULE = types.ModuleType("elsewhere")
CONTEXT = contextvars.ContextVar("CONTEXT", default=1.0)
THREAD = threading.local()
TENSOR = torch.ones((), dtype=torch.float64)
DEFAULTS = {"factor": 1.0}


@dataclasses.dataclass
class Settings:
    value: float = 1.0


SETTINGS = Settings()


class Namespace:
    value = 1.0
    in_list = [1.0]  # noqa: RUF012 (what is tested)

    @classmethod
    def get(cls):
        return cls.value


def set_all(value):
    """Change every value that a case reads."""
    global GLOBAL
    GLOBAL = IN_DICT["value"] = IN_LIST[0] = OBJECT.value = MODULE.value = SETTINGS.value = Namespace.value = value
    Namespace.in_list[0] = Mutable.values[0] = Plain.level = WithAttribute.level = value
    function_with_attribute.level = THREAD.value = DEFAULTS["factor"] = value
    os.environ["LIGHTNING_META_TEST_VALUE"] = str(value)
    CONTEXT.set(value)
    TENSOR.fill_(value)
    helper_with_default.__defaults__ = (value,)


def helper():
    return GLOBAL


def helper_of_helper():
    return helper()


def helper_with_default(value=1.0):
    return value


def function_with_attribute():
    return function_with_attribute.level


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments) * GLOBAL

    return wrapper


def environment():
    return float(os.environ["LIGHTNING_META_TEST_VALUE"])


class Scaled(nn.Module):
    """A model whose output is multiplied by a value that the case reads."""

    def __init__(self, read=None):
        super().__init__()
        self.inner = nn.Linear(1, 1)
        if read is not None:
            self.read = read

    def factor(self):
        return self.read()

    def forward(self, x):
        return self.inner(x) * self.factor()


class Plain(Scaled):
    level = 1.0

    def factor(self):
        return self.level


class Mutable(Scaled):
    values = [1.0]  # noqa: RUF012 (what is tested)

    def factor(self):
        return self.values[0]


class ByProperty(Scaled):
    @property
    def current(self):
        return GLOBAL

    def factor(self):
        return self.current


class ByStaticMethod(Scaled):
    @staticmethod
    def factor():
        return GLOBAL


class ByClassMethod(Scaled):
    @classmethod
    def factor(cls):
        return GLOBAL


class Decorated(Scaled):
    def factor(self):
        return 1.0

    @decorated
    def forward(self, x):
        return self.inner(x)


class WithNamespace(Scaled):
    def __init__(self):
        super().__init__()
        self.namespace, self.settings = Namespace, SETTINGS

    def factor(self):
        return self.namespace.value * self.settings.value


class WithAttribute(Scaled):
    level = 1.0

    def __getattr__(self, name):
        return GLOBAL if name == "missing" else super().__getattr__(name)

    def factor(self):
        return self.missing


class Item(Scaled):
    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.ones(()))

    def factor(self):
        return self.level.item() * GLOBAL


class Clock(Scaled):
    def factor(self):
        return CLOCK()


class Ticks:
    """A clock that counts how often it was asked."""

    def __init__(self):
        self.ticks = itertools.count(1)

    def __call__(self):
        return 1.0 + 0.01 * (next(self.ticks) + 0 * time.perf_counter())


CLOCK = Ticks()

MODELS = {
    "global": lambda: Scaled(lambda: GLOBAL),
    "dict": lambda: Scaled(lambda: IN_DICT["value"]),
    "dict.get": lambda: Scaled(functools.partial(IN_DICT.get, "value")),
    "list": lambda: Scaled(lambda: IN_LIST[0]),
    "sum of list": lambda: Scaled(lambda: sum(IN_LIST)),
    "object": lambda: Scaled(lambda: OBJECT.value),
    "vars of object": lambda: Scaled(lambda: vars(OBJECT)["value"]),
    "dataclass": lambda: Scaled(lambda: SETTINGS.value),
    "class as namespace": lambda: Scaled(lambda: Namespace.value),
    "list in a class": lambda: Scaled(lambda: Namespace.in_list[0]),
    "getattr": lambda: Scaled(lambda: getattr(Namespace, "value")),  # noqa: B009 (what is tested)
    "namespace and dataclass as attributes": WithNamespace,
    "another module": lambda: Scaled(lambda: MODULE.value),
    "sys.modules": lambda: Scaled(lambda: sys.modules[__name__].GLOBAL),
    "globals()": lambda: Scaled(lambda: globals()["GLOBAL"]),
    "helper": lambda: Scaled(helper),
    "helper of a helper": lambda: Scaled(helper_of_helper),
    "default argument": lambda: Scaled(helper_with_default),
    "function's attribute": lambda: Scaled(function_with_attribute),
    "class attribute": Plain,
    "mutable class attribute": Mutable,
    "property": ByProperty,
    "static method": ByStaticMethod,
    "class method": ByClassMethod,
    "bound class method": lambda: Scaled(Namespace.get),
    "bound builtin": lambda: Scaled(iter_free_get()),
    "decorator": Decorated,
    "__getattr__": WithAttribute,
    "environment": lambda: Scaled(environment),
    "os.getenv": lambda: Scaled(lambda: float(os.getenv("LIGHTNING_META_TEST_VALUE"))),
    "os.environ.get": lambda: Scaled(lambda: float(os.environ.get("LIGHTNING_META_TEST_VALUE"))),
    "context variable": lambda: Scaled(CONTEXT.get),
    "thread's variable": lambda: Scaled(lambda: THREAD.value),
    "tensor": lambda: Scaled(lambda: TENSOR),
    "item of a buffer": Item,
    "numpy": lambda: Scaled(lambda: float(np.asarray(IN_LIST).sum())),
}


def iter_free_get():
    get = IN_DICT.get
    return lambda: get("value")


def scaled_loss(output, target):
    return nn.functional.mse_loss(output, target) * helper()


def loss_by_dict(output, target):
    return nn.functional.mse_loss(output, target) * IN_DICT["value"]


def loss_by_attribute(output, target):
    return nn.functional.mse_loss(output, target) * function_with_attribute.level


class LossByClass(nn.MSELoss):
    def forward(self, output, target):
        return super().forward(output, target) * Namespace.value


LOSSES = {
    "function that calls another": scaled_loss,
    "function that reads a dict": loss_by_dict,
    "function with an attribute": loss_by_attribute,
    "partial": functools.partial(scaled_loss),
    "module": LossByClass(),
}


class ClassRate(UpdateRule):
    level = 1.0

    def init(self, parameters):
        return ()

    def factor(self):
        return self.level

    def update(self, parameters, gradients, state, rates, step):
        return {n: p - rates[n] * self.factor() * gradients[n] for n, p in parameters.items()}, state


class GlobalRate(ClassRate):
    def factor(self):
        return GLOBAL


class DerivedRate(SGD):
    def update(self, parameters, gradients, state, rates, step):
        scaled = {name: GLOBAL * gradient for name, gradient in gradients.items()}
        return super().update(parameters, scaled, state, rates, step)


class MetaGradientByProperty(MAML):
    @property
    def meta_gradient(self):
        return FirstOrder() if GLOBAL > 1 else Unrolled()

    @meta_gradient.setter
    def meta_gradient(self, value):
        pass


class StepsByProperty(MAML):
    @property
    def inner_steps(self):
        return int(GLOBAL)

    @inner_steps.setter
    def inner_steps(self, value):
        pass


class RateByProperty(Reptile):
    @property
    def inner_lr(self):
        return 0.1 * GLOBAL

    @inner_lr.setter
    def inner_lr(self, value):
        pass


class HalvedLoss(MAML):
    def task_loss(self, meta, task):
        loss, result = super().task_loss(meta, task)
        return loss * GLOBAL, result


LEARNERS = {
    "rule's class attribute": lambda **o: MAML(nn.Linear(1, 1), nn.MSELoss(), inner_optimizer=ClassRate(), **o),
    "rule's global": lambda **o: MAML(nn.Linear(1, 1), nn.MSELoss(), inner_optimizer=GlobalRate(), **o),
    "derived rule": lambda **o: MAML(nn.Linear(1, 1), nn.MSELoss(), inner_optimizer=DerivedRate(), **o),
    "meta_gradient a property": lambda **o: MetaGradientByProperty(nn.Linear(1, 1), nn.MSELoss(), **o),
    "inner_steps a property": lambda **o: StepsByProperty(nn.Linear(1, 1), nn.MSELoss(), **o),
    "inner_lr a property": lambda **o: RateByProperty(nn.Linear(1, 1), nn.MSELoss(), **o),
    "task_loss": lambda **o: HalvedLoss(nn.Linear(1, 1), nn.MSELoss(), **o),
}
LEARNERS |= {
    f"model: {name}": lambda make=make, **o: MAML(make(), nn.MSELoss(), inner_lr=0.1, **o)
    for name, make in MODELS.items()
}
LEARNERS |= {
    f"loss: {name}": lambda loss=loss, **o: MAML(nn.Linear(1, 1), loss, inner_lr=0.1, **o)
    for name, loss in LOSSES.items()
}


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


MODES = [None, "record", pytest.param(True, marks=pytest.mark.slow)]  # the last has the guards of the one before


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


def patched(self, x):
    return nn.functional.linear(x, self.weight, self.bias) * GLOBAL


def scaled(function):
    return lambda *arguments, **options: function(*arguments, **options) * GLOBAL


def absolute_loss(self, output, target):
    return (output - target).abs().mean() * GLOBAL


def patch_code(model, monkeypatch, removed):
    monkeypatch.setattr(MLP.forward, "__code__", (lambda self, x: self.layers(x) * self.factor).__code__)
    monkeypatch.setattr(MLP, "factor", property(lambda self: GLOBAL), raising=False)


def patch_globally(model, monkeypatch, removed):
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: output * GLOBAL)
    removed.callback(handle.remove)


PATCHES = {
    "instance": lambda model, m, r: setattr(model[0], "forward", types.MethodType(patched, model[0])),
    "class": lambda model, m, r: m.setattr(nn.Linear, "forward", patched),
    "library class": lambda model, m, r: m.setattr(MLP, "forward", lambda self, x: self.layers(x) * GLOBAL),
    "functional": lambda model, m, r: m.setattr(nn.functional, "linear", scaled(nn.functional.linear)),
    "torch": lambda model, m, r: m.setattr(torch, "tanh", scaled(torch.tanh)),
    "Tensor": lambda model, m, r: m.setattr(torch.Tensor, "flatten", scaled(torch.Tensor.flatten)),
    "library function": lambda model, m, r: m.setattr(learner_module, "masked_mean", scaled(masked_mean)),
    "code": patch_code,
    "hook": lambda model, m, r: model[0].register_forward_hook(lambda module, inputs, output: output * GLOBAL),
    "global hook": patch_globally,
    "loss": lambda model, m, r: m.setattr(nn.MSELoss, "forward", absolute_loss),
}


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


@pytest.mark.parametrize("cls", [MAML, ANIL, BOIL, MetaSGD, Reptile, ImplicitMAML, BayesianMAML, AmortizedMAML, ABML])
def test_200_steps_of_the_default_end_where_plain_ones_do(cls, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 10)
    torch.manual_seed(0)
    plain = cls(MLP(hidden=[4]), nn.MSELoss(), inner_lr=0.01, compile=False)
    learner = cls(MLP(hidden=[4]), nn.MSELoss(), inner_lr=0.01)
    learner.load_state_dict(plain.state_dict())
    ends = []
    for own in (plain, learner):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(own.parameters(), lr=1e-3)
        for _ in range(200):
            batch = Episode(*[torch.randn(2, size, 1) for size in (3, 3, 4, 4)])
            optimizer.zero_grad()
            own.training_step(batch, 0).backward()
            optimizer.step()
        ends.append(own.state_dict())
    assert len(learner._mapping._recorder.recordings()) == 1
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-9, atol=1e-11)
