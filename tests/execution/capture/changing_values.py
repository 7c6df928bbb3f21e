"""Models, losses, rules and learners that read a value from all kinds of places, and `set_all`, which changes it."""

from __future__ import annotations

import contextvars
import dataclasses
import functools
import itertools
import os
import sys
import threading
import time
import types

import numpy as np
import torch
from torch import nn

from lightning_meta import MAML, MLP, Reptile
from lightning_meta.inner import SGD, FirstOrder, Unrolled, UpdateRule
from lightning_meta.learners import per_task as learner_module
from lightning_meta.likelihoods.losses import masked_mean

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
