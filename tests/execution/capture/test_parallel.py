"""Recordings that share tasks out among threads; most tests leave out the compiler, which takes seconds."""

from __future__ import annotations

import multiprocessing
import threading
import time
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn

from lightning_meta import (
    MAML,
    MLP,
    Conv4,
    Episode,
    Reptile,
    collate_episodes,
)
from lightning_meta.episodes.task_result import merge_results
from lightning_meta.execution import plan as plan_module
from lightning_meta.execution.capture import graph, parallel, recorder
from lightning_meta.execution.options import Execution
from tests.reference import assert_same, loop_meta_gradient, meta_gradient
from tests.registry import every

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def threads(monkeypatch):
    """Counts recorded calls by thread, with three threads for however little work."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(plan_module, "_WORTH_A_THREAD", 1e-9)
    calls = Counter()
    run = graph.Recording.__call__

    def counted(self, tensors):
        name = threading.current_thread().name
        calls[name] += 1
        if name.startswith("lightning_meta"):
            assert torch.get_num_threads() == 1  # else every thread would start more
        return run(self, tensors)

    monkeypatch.setattr(graph.Recording, "__call__", counted)
    yield calls
    torch.set_num_threads(before)


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(graph, "compiled_graph", lambda graph: graph.forward)


def make_batch(tasks=5):
    return Episode(*[torch.randn(tasks, size, 1) for size in (5, 5, 6, 6)])


def make_images(tasks=5):
    labels = torch.arange(3).expand(tasks, 3)
    return Episode(torch.rand(tasks, 3, 1, 28, 28), labels, torch.rand(tasks, 3, 1, 28, 28), labels)


def check(learner, model, batch):
    for _ in range(3):  # the first records
        expected = loop_meta_gradient(model, learner.loss_fn, batch, 0.1, 2)
        loss, gradient = meta_gradient(learner, batch)
        torch.testing.assert_close(loss, expected[0])
        assert_same(gradient, expected[1])
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("tasks", [2, 5, 6])
def test_tasks_shared_out_have_the_loops_gradient(tasks, threads):
    model = MLP(hidden=[6])
    check(MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=True), model, make_batch(tasks))
    assert sum(name.startswith("lightning_meta") for name in threads) == min(tasks, 3) - 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("without_compiler")
def test_masked_tasks_shared_out_have_the_loops_gradient(threads):
    model = MLP(hidden=[6])
    tasks = [Episode(*[torch.randn(size, 1) for size in (n, n, 6, 6)]) for n in (5, 3, 5, 4, 5)]
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=True)
    alone = [loop_meta_gradient(model, nn.MSELoss(), collate_episodes([task]), 0.1, 2) for task in tasks]
    for _ in range(3):
        loss, gradient = meta_gradient(learner, collate_episodes(tasks))
    assert len(threads) == 3
    torch.testing.assert_close(loss, torch.stack([own for own, _ in alone]).mean())
    assert_same(gradient, {n: sum(own[n] for _, own in alone) / len(alone) for n in gradient})


@pytest.mark.usefixtures("without_compiler")
@every(lambda entry: entry.name != "MAML", quick=["BayesianMAML", "ProtoNet"])  # other tests take MAML
def test_every_learner_reports_its_tasks_in_order(entry, threads):
    batch = entry.batch(7, support=5, query=6)
    plain, shared = (entry.learner(inner_lr=0.05, compile=c) for c in (False, True))
    shared.load_state_dict(plain.state_dict())
    for _ in range(3):
        torch.manual_seed(1)
        expected = meta_gradient(plain, batch)
        torch.manual_seed(1)
        found = meta_gradient(shared, batch)
    torch.testing.assert_close(found[0], expected[0])
    for name, slope in expected[1].items():
        torch.testing.assert_close(found[1][name], slope, rtol=1e-6, atol=1e-8)
    metas = [{name: p.detach() for name, p in learner.named_parameters()} for learner in (plain, shared)]
    pieces = [
        learner._mapping.gradients(meta, learner._prepared(batch), learner._traits())[1]
        for learner, meta in zip((plain, shared), metas, strict=True)
    ]
    reports = [merge_results(results, 6) for results in pieces]
    if not any(recording.draws for recording in shared._mapping._recorder.recordings()):
        assert len(threads) == (3 if entry.takes_steps else 1)  # the work of a learner without steps counts as none
        torch.testing.assert_close(reports[1].outputs, reports[0].outputs)
        torch.testing.assert_close(reports[1].loss, reports[0].loss)


@pytest.mark.usefixtures("without_compiler")
def test_what_draws_random_numbers_stays_in_one_thread(threads):
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    learner, batch = MAML(model, nn.MSELoss(), compile=True), make_batch()
    for _ in range(3):
        meta_gradient(learner, batch)
    assert set(threads) == {threading.current_thread().name}


@pytest.mark.usefixtures("without_compiler")
def test_with_one_thread_nothing_is_shared_out(threads):
    torch.set_num_threads(1)
    model = MLP(hidden=[6])
    check(MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=True), model, make_batch())
    assert set(threads) == {threading.current_thread().name}


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize("most", [1, 2])
def test_an_execution_bounds_the_threads(most, threads):
    model = MLP(hidden=[6])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=True)
    check(learner, model, make_batch())
    assert len(threads) == 3
    threads.clear()
    learner.execution = Execution(compile=True, threads=most)
    check(learner, model, make_batch())
    assert len(threads) == most


@pytest.mark.parametrize("tasks", [2, 4, 5, 7])
def test_images_shared_out_have_the_loops_gradient(tasks, threads, monkeypatch):
    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)
    model = Conv4(3, filters=4)
    check(MAML(model, inner_lr=0.1, inner_steps=2), model, make_images(tasks))
    assert len(threads) == {2: 2, 4: 2, 5: 3, 7: 3}[tasks]
    assert torch.get_num_threads() == 3


class Dropping(nn.Linear):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1)


@pytest.mark.parametrize(
    "case", ["drawing", "mapped by the user", "overridden", "too large", "minibatches", "drawing unseen"]
)
def test_images_stay_in_one_thread_where_they_must(case, threads, monkeypatch):
    class Halved(MAML):
        def task_loss(self, meta, task):
            loss, result = super().task_loss(meta, task)
            return 0.5 * loss, result

    monkeypatch.setattr(recorder, "ALIKE_BEFORE_RECORDING", 0)
    model = Conv4(3, filters=4)
    if case == "drawing unseen":
        model.head = Dropping(4, 3)
    if case == "drawing":
        model.head = nn.Sequential(nn.Dropout(0.1), model.head)
    if case == "too large":
        monkeypatch.setattr(plan_module, "_CONVOLVED_AT_ONCE", 6 * 28 * 28 - 1)
    cls = {"overridden": Halved, "minibatches": partial(Reptile, inner_batch_size=2)}.get(case, MAML)
    learner = cls(model, task_chunk_size=2 if case == "mapped by the user" else None)
    for _ in range(3):
        meta_gradient(learner, make_images())
    unrecorded = case in ("overridden", "drawing unseen")
    assert set(threads) == (set() if unrecorded else {threading.current_thread().name})
    assert torch.get_num_threads() == 3


def test_an_error_in_any_thread_is_raised_when_all_are_done():
    done = []

    def fails():
        raise torch.OutOfMemoryError("no more")

    def works():
        time.sleep(0.1)
        done.append(True)

    for calls in ([fails, works, works], [works, works, fails]):
        done.clear()
        with pytest.raises(torch.OutOfMemoryError):
            parallel.share_out(calls, 3)
        assert len(done) == 2


def test_results_come_in_the_order_of_the_calls():
    calls = [partial(int, i) for i in range(7)]
    assert parallel.share_out(calls, 8) == list(range(7))


def test_one_piece_after_another_is_added_and_forgotten(monkeypatch):
    """However many pieces there are, few pieces' gradients exist at a time."""
    learner = MAML(nn.Linear(1, 1), nn.MSELoss(), task_chunk_size=1, compile=False)
    eagerly, alive, most = learner._mapping._eagerly, Counter(), 0

    def counted(meta, piece):
        nonlocal most
        sums, result = eagerly(meta, piece)
        alive["now"] += 1
        weakref.finalize(sums["model.weight"], alive.subtract, ["now"])
        most = max(most, alive["now"])
        return sums, result

    monkeypatch.setattr(learner._mapping, "_eagerly", counted)
    meta_gradient(learner, make_batch(10))
    assert 1 <= most <= 3


def _in_a_fork(results):
    results.put(parallel.share_out([int, int], 2))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork")
def test_a_forked_process_has_threads_of_its_own():
    parallel.share_out([int, int], 2)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_in_a_fork, args=(results,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert results.get() == [0, 0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_tasks_shared_out_have_the_loops_gradient(threads):
    model = MLP(hidden=[6])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=True)
    check(learner, model, make_batch())
    assert len(threads) == 3
    assert all(recording._run.worked for recording in learner._mapping._recorder.recordings())
