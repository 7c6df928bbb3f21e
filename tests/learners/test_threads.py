"""One learner serves several threads: results to the last bit as in one, the learner as it was."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lightning_meta import (
    ABML,
    ANIL,
    MAML,
    MLP,
    Conv4,
    Episode,
)
from lightning_meta.execution.capture import recorder
from tests.registry import BY_NAME, LEARNERS, Entry, cases

THREADS, TASKS = 8, 40
INNER = {"inner_lr": 0.05, "inner_steps": 2}


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(1, 8), nn.Unflatten(1, (1, 8)), layer, nn.Flatten(), nn.Linear(8, 1))
    return MAML(model, nn.MSELoss(), inner_lr=0.05).eval()


ATTENTION = Entry("attention", MAML)


def tasks(entry=ATTENTION):
    return [entry.task(5, 5)[:3] for _ in range(TASKS)]


def in_threads(function, items):
    each = torch.get_num_threads()  # new threads would have as many as there are cores, and round otherwise
    with ThreadPoolExecutor(THREADS, initializer=lambda: torch.set_num_threads(each)) as pool:
        return list(pool.map(function, items))


@pytest.mark.parametrize("entry", cases([*LEARNERS, ATTENTION]))
def test_threads_adapt_and_predict_at_once(entry):
    # Draws are too small to change a number, as several threads cannot draw in one order.
    given = tasks(entry)
    learner = attention() if entry is ATTENTION else entry.learner(**INNER, **entry.certain).eval()
    before = dict(learner.named_parameters())
    values = {key: value.clone() for key, value in learner.state_dict().items()}

    def serve(task):
        support_x, support_y, query_x = task
        return learner.adapt(support_x, support_y)(query_x)

    expected = [serve(task) for task in given]
    found = in_threads(serve, given)
    for one, other in zip(found, expected, strict=True):
        if entry.cls is ABML:  # whose draws keep a certain width, for their derivative
            torch.testing.assert_close(one, other)
        else:
            assert torch.equal(one, other)
    after = dict(learner.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[key] is before[key] for key in before)
    assert all(torch.equal(value, values[key]) for key, value in learner.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


def test_threads_share_one_adapted_task():
    torch.manual_seed(0)
    learner = MAML(Conv4(3, filters=4), inner_lr=0.1).eval()
    images = torch.rand(TASKS, 3, 1, 28, 28)
    task = learner.adapt(torch.rand(3, 1, 28, 28), torch.arange(3))
    expected = [task(each) for each in images]
    found = in_threads(task, images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_two_learners_of_one_model_and_a_training_do_not_disturb_each_other():
    model = MLP(hidden=[8])
    serving, other, training = (
        cls(model, nn.MSELoss(), inner_lr=0.05, inner_steps=2, compile=False).eval() for cls in (MAML, ANIL, MAML)
    )
    given = tasks()
    batch = Episode(*[torch.randn(4, 5, 1) for _ in range(4)])
    parameters = list(model.parameters())

    def gradient():
        return torch.autograd.grad(training.training_step(batch, 0), parameters)

    expected_gradient = gradient()
    expected = [[learner.adapt(x, y)(query) for x, y, query in given] for learner in (serving, other)]
    results: dict[str, list] = {}

    def serve(name, learner):
        results[name] = [learner.adapt(x, y)(query) for x, y, query in given]

    def train():
        results["training"] = [gradient() for _ in range(30)]

    threads = [
        threading.Thread(target=serve, args=("serving", serving)),
        threading.Thread(target=serve, args=("other", other)),
        threading.Thread(target=train),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, those in zip(("serving", "other"), expected, strict=True):
        assert all(torch.equal(one, that) for one, that in zip(results[name], those, strict=True))
    for found in results["training"]:
        assert all(torch.equal(one, that) for one, that in zip(found, expected_gradient, strict=True))


# Draws again too small to matter: threads share torch's generator, and a recording is compared draw by draw.
@pytest.mark.parametrize("name", ["BayesianMAML", "AmortizedMAML"])
def test_training_is_recorded_while_other_threads_adapt(name, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 1)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    entry = BY_NAME[name]
    learner, batch = entry.learner(**entry.certain), entry.batch()
    done = threading.Event()

    def serve():
        while not done.is_set():
            learner.adapt(batch.support_x[0], batch.support_y[0])(batch.query_x[0])

    servers = [threading.Thread(target=serve) for _ in range(3)]
    for server in servers:
        server.start()
    try:
        for _ in range(60):
            learner.training_step(batch, 0)
    finally:
        done.set()
        for server in servers:
            server.join()
        sys.setswitchinterval(before)
    assert learner._mapping._recorder is not None
    assert len(learner._mapping._recorder._kinds) == 1  # one state throughout
