from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from lightning_meta import (
    ABML,
    MAML,
    MLP,
    Conv4,
    Episode,
)
from tests.reference import assert_same, loop_meta_gradient, meta_gradient
from tests.registry import every

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # Raised inside torch's compiler.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def batch():
    return Episode(torch.randn(4, 5, 1), torch.randn(4, 5, 1), torch.randn(4, 6, 1), torch.randn(4, 6, 1))


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


WITHOUT_COMPILER = """
import torch
from torch import nn
from lightning_meta import MAML, MLP, Episode
from tests.reference import assert_same, loop_meta_gradient, meta_gradient

torch.set_default_dtype(torch.float64)
batch = Episode(torch.randn(4, 5, 1), torch.randn(4, 5, 1), torch.randn(4, 6, 1), torch.randn(4, 6, 1))
model = MLP(hidden=[4])
learner = MAML(model, nn.MSELoss(), inner_lr=0.1, compile=True)
for _ in range(2):
    assert_same(meta_gradient(learner, batch)[1], loop_meta_gradient(model, nn.MSELoss(), batch, 0.1, 1)[1])
"""


def test_without_a_compiler_training_goes_on_and_says_so_once(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("compile=True: the step cannot be compiled and runs as it is") == 1


def test_the_models_own_errors_are_not_taken_for_the_compilers(batch):
    class Broken(MLP):
        def forward(self, x):
            return super().forward(x) @ torch.ones(7, 7)

    learner = MAML(Broken(hidden=[4]), lambda output, target: output.mean(), compile=True)
    with pytest.raises(RuntimeError, match="mat1 and mat2|size|shape") as caught:
        meta_gradient(learner, batch)
    assert type(caught.value) is RuntimeError


def test_what_cannot_be_compiled_is_refused():
    for wrong in ({"checkpoint_inner_loop": True}, {"first_order_epochs": 1}, {"multi_step_loss_epochs": 1}):
        with pytest.raises(ValueError, match="compile=True"):
            MAML(MLP(), nn.MSELoss(), compile=True, **wrong)


@pytest.mark.slow
def test_compiled_maml_has_the_loops_gradient_also_after_changes(batch):
    model = MLP(hidden=[6])
    learner = MAML(model, nn.MSELoss(), inner_lr=0.1, inner_steps=2, compile=True)
    for tasks in (batch, batch.select(slice(0, 3))):  # the last batch of an epoch may be smaller
        for _ in range(2):
            assert_same(meta_gradient(learner, tasks)[1], loop_meta_gradient(model, nn.MSELoss(), tasks, 0.1, 2)[1])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    assert_same(meta_gradient(learner, batch)[1], loop_meta_gradient(model, nn.MSELoss(), batch, 0.1, 2)[1])
    for copied in (copy.deepcopy(learner), pickle.loads(pickle.dumps(learner))):
        for _ in range(2):
            assert_same(meta_gradient(copied, batch)[1], meta_gradient(learner, batch)[1])


@pytest.mark.slow
def test_a_subclass_that_cannot_be_recorded_is_compiled_as_it_is(batch):
    class Halved(MAML):
        def task_loss(self, meta, task):
            loss, result = super().task_loss(meta, task)
            return 0.5 * loss, result

    model = MLP(hidden=[6])
    learner = Halved(model, nn.MSELoss(), inner_lr=0.1, compile=True)
    expected = loop_meta_gradient(model, nn.MSELoss(), batch, 0.1, 1)[1]
    assert_same(meta_gradient(learner, batch)[1], {name: 0.5 * slope for name, slope in expected.items()})
    assert learner._mapping._recorder.recordings() == []
    assert learner._mapping._guarded.worked


@pytest.mark.slow
@every(lambda entry: entry.name != "MAML")  # which the other tests take
def test_compiled_learners_have_the_same_gradient(entry):
    import torch._inductor.config as inductor

    options, batch = {"inner_lr": 0.05, "inner_steps": 2}, entry.batch()
    if entry.cls is ABML:  # whose draws may come in another order: they shall not matter
        options |= entry.certain
    learner, compiled = (entry.learner(compile=compile, **options) for compile in (False, True))
    compiled.load_state_dict(learner.state_dict())
    with inductor.patch(fallback_random=True):  # the same random numbers as without compilation
        torch.manual_seed(1)
        expected = meta_gradient(learner, batch)
        meta_gradient(compiled, batch)  # the first call is the uncompiled step's, for comparison
        torch.manual_seed(1)
        found = meta_gradient(compiled, batch)
    (recording,) = compiled._mapping._recorder.recordings()
    assert recording._run.worked
    torch.testing.assert_close(found[0], expected[0])
    for name, slope in expected[1].items():
        torch.testing.assert_close(found[1][name], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_compiled_images_have_the_loops_gradient():
    model, labels = Conv4(5, filters=4), torch.arange(5).expand(3, 5)
    batch = Episode(torch.rand(3, 5, 1, 28, 28), labels, torch.rand(3, 5, 1, 28, 28), labels)
    plain = meta_gradient(MAML(model, inner_lr=0.1), batch)
    learner = MAML(model, inner_lr=0.1, compile=True)
    meta_gradient(learner, batch)  # the first call is the uncompiled step's, for comparison
    found = meta_gradient(learner, batch)
    for name, slope in plain[1].items():
        torch.testing.assert_close(found[1][name], slope, rtol=1e-6, atol=1e-8)
