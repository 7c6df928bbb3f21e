"""Compiled recordings that share tasks out among threads; most tests leave out the compiler, which takes seconds."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter

import pytest
import torch
from torch import nn

from lightning_meta import ANIL, MAML, MLP, AmortizedMAML, Episode, ImplicitMAML, MetaSGD, Reptile, collate_episodes
from lightning_meta.recording import graph, parallel
from tests.reference import assert_same, loop_meta_gradient, meta_gradient

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def threads(monkeypatch):
    """Counts recorded calls by thread, with three threads for however little work."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(parallel, "_WORTH_A_THREAD", 1)
    calls = Counter()
    run = graph.Recording.run

    def counted(self, tensors):
        calls[threading.current_thread().name] += 1
        assert torch.get_num_threads() == 1  # else every thread would start more
        return run(self, tensors)

    monkeypatch.setattr(graph.Recording, "run", counted)
    yield calls
    torch.set_num_threads(before)


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(graph, "compiled_graph", lambda graph: graph.forward)


def make_batch(tasks=5):
    return Episode(*[torch.randn(tasks, size, 1) for size in (5, 5, 6, 6)])


def check(learner, model, batch):
    for _ in range(3):  # records, compiles alone, shares out
        expected = loop_meta_gradient(model, nn.MSELoss(), batch, 0.1, 2)
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
@pytest.mark.parametrize("cls", [ANIL, MetaSGD, Reptile, ImplicitMAML, AmortizedMAML])
def test_every_learner_reports_its_tasks_in_order(cls, threads):
    batch = make_batch(7)
    plain, shared = (cls(MLP(hidden=[6]), nn.MSELoss(), inner_lr=0.05, compile=c) for c in (False, True))
    shared.load_state_dict(plain.state_dict())
    for _ in range(3):
        torch.manual_seed(1)
        expected = meta_gradient(plain, batch)
        torch.manual_seed(1)
        found = meta_gradient(shared, batch)
    torch.testing.assert_close(found[0], expected[0])
    for name, slope in expected[1].items():
        torch.testing.assert_close(found[1][name], slope, rtol=1e-6, atol=1e-8)
    reports = [
        learner._mapping.gradients({n: p.detach() for n, p in learner.named_parameters()}, batch)[1][0][1]
        for learner in (plain, shared)
    ]
    if not any(recording.draws for recording in shared._mapping._train.recordings()):
        assert len(threads) == 3
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


def test_matrix_operations_are_counted_as_by_hand():
    x, weight = torch.randn(3, 4), torch.randn(4, 5)
    recording = graph.Recording(lambda weight, x: torch.tanh(x @ weight), (weight, x), compiled=False)
    assert recording.matrix_operations() == 2 * 3 * 4 * 5


def _in_a_fork(results):
    results.put(parallel._threads(1).submit(int).result(timeout=60))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system cannot fork")
def test_a_forked_process_has_threads_of_its_own():
    parallel._threads(1).submit(int).result()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_in_a_fork, args=(results,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert results.get() == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_tasks_shared_out_have_the_loops_gradient(threads):
    model = MLP(hidden=[6])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=True)
    check(learner, model, make_batch())
    assert len(threads) == 3
    (recording,) = learner._mapping._train.recordings()
    assert all(part._run.worked for _, part in recording._parts)
