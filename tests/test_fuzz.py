"""Whatever shapes, settings and values: a finite training step, or an error that the documentation names."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_meta import (
    ABML,
    ANIL,
    BOIL,
    CNP,
    MAML,
    PACOH,
    TNP,
    AmortizedMAML,
    AttentiveNP,
    BayesianMAML,
    Episode,
    ImplicitMAML,
    MetaSGD,
    ProtoMAML,
    Reptile,
    SupportClassLearner,
    collate_episodes,
)
from lightning_meta.algorithms.transfer.transfer_learner import TransferLearner
from lightning_meta.cli import main as command_line
from tests.registry import LEARNERS

DOCUMENTED = (ValueError, TypeError, FloatingPointError)

MODELS = {
    "linear": lambda i, o: nn.Linear(i, o),
    "mlp": lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.ReLU(), nn.Linear(4, o)),
    "dropout": lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.Dropout(0.5), nn.Linear(4, o)),
    "layer norm": lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.LayerNorm(4), nn.Linear(4, o)),
    "batch norm": lambda i, o: nn.Sequential(nn.Linear(i, 4), nn.BatchNorm1d(4), nn.Linear(4, o)),
    "flat": lambda i, o: nn.Sequential(nn.Linear(i, 1), nn.Flatten(0)),
}
LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(ignore_index=0, label_smoothing=0.1),
    "squared": nn.MSELoss(),
    "binary": nn.BCEWithLogitsLoss(),
    "sum": nn.MSELoss(reduction="sum"),
    "own": lambda output, target: (output.float().mean() - target.float().mean()).square(),
}
# Most values are good, so that most cases get past the constructor.
FITTING = {"labels": (2, ["cross-entropy", "cross-entropy", "weighted"]), "column": (1, ["squared", "squared", "own"])}
RATES = st.sampled_from([0.01, 0.1, 0.5, 1e-8, 30.0] * 4 + [1e30, 0.0, -1.0, math.nan, math.inf])
COUNTS = st.sampled_from([1, 2, 3] * 4 + [0, -1])
OWN_ARGUMENTS = {
    MAML: {
        "adapt": st.sampled_from(["all", "head", "body", ["*bias"], "nothing", []]),
        "inner_optimizer": st.sampled_from(["sgd", "adam", "momentum", "lbfgs"]),
        "learned_rates": st.sampled_from(["none", "tensor", "tensor_step", "element", "row"]),
        "checkpoint_inner_loop": st.booleans(),
        "first_order": st.booleans(),
        "multi_step_loss_epochs": COUNTS,
    },
    ANIL: {"first_order": st.booleans()},
    BOIL: {"first_order": st.booleans()},
    MetaSGD: {"first_order": st.booleans()},
    ProtoMAML: {"adapt": st.sampled_from(["all", "head", "body", ["*bias"]]), "first_order": st.booleans()},
    Reptile: {"inner_batch_size": COUNTS, "inner_state": st.sampled_from(["kept", "reset", "lost"])},
    ImplicitMAML: {"prox_lambda": RATES, "cg_steps": COUNTS, "cg_damping": RATES},
    BayesianMAML: {"num_particles": COUNTS, "prior_precision": RATES, "meta_loss": st.sampled_from(["chaser", "nll"])},
    AmortizedMAML: {"num_samples": COUNTS, "kl_weight": RATES},
    ABML: {"num_samples": COUNTS, "kl_weight": RATES},
    CNP: {"hidden": COUNTS, "layers": COUNTS, "min_std": RATES, "score_support": st.booleans()},
    AttentiveNP: {"heads": COUNTS, "attention": st.booleans(), "num_samples": COUNTS, "kl_weight": RATES},
    PACOH: {"num_particles": COUNTS, "hyper_prior_weight": RATES, "weight_prior_std": RATES},
    TNP: {"heads": COUNTS, "layers": COUNTS, "min_std": RATES},
}
CLASSES = {entry.cls: entry for entry in LEARNERS}
COMMON = {
    "task_chunk_size": st.sampled_from([None, 1, 2, 0]),
    "batch_statistics": st.sampled_from(["batch", "support", "running", "mean"]),
}


OF_STEPS = {"inner_lr": RATES, "inner_steps": COUNTS}


@st.composite
def arguments(draw, cls):
    """A few arguments at a time."""
    available = {**COMMON, **(OF_STEPS if CLASSES[cls].takes_steps else {}), **OWN_ARGUMENTS.get(cls, {})}
    names = draw(st.lists(st.sampled_from(sorted(available)), max_size=3, unique=True))
    return {name: draw(available[name]) for name in names}


@st.composite
def episodes(draw):
    """Tasks of the same or of different sizes, now and then with wrong targets or broken values."""
    features, dtype = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from([torch.float32] * 10 + [torch.float64, torch.int64])),
    )
    target = draw(st.sampled_from(["labels", "column"] * 4 + ["flat", "narrow", "too many", "one-hot"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def examples(size):
        x = torch.randn(size, features, generator=generator).to(dtype)
        labels = torch.arange(size) % (9 if target == "too many" else 2)
        y = {
            "column": torch.randn(size, 1, generator=generator),
            "flat": torch.randn(size, generator=generator),
            "narrow": labels.int(),
            "one-hot": nn.functional.one_hot(labels % 2, 2).float(),
        }.get(target, labels)
        return x, y

    ragged = draw(st.booleans())
    sizes = [draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(draw(st.integers(1, 3)))]
    tasks = [Episode(*examples(s), *examples(q)) for s, q in (sizes if ragged else sizes[:1] * len(sizes))]
    batch = collate_episodes(tasks)
    if draw(st.integers(0, 9)) == 0 and dtype.is_floating_point:
        batch.support_x[0, 0, 0] = draw(st.sampled_from([math.nan, math.inf, 1e30]))
    return batch, features, target


def attempt(function):
    """Return the function's result, or the error, of a documented kind or torch's own, that it raised."""
    try:
        return function(), None
    except (*DOCUMENTED, RuntimeError) as error:
        return None, error


def suits(cls, target, batch):
    """Whether a learner takes such targets; those of any ways need an example of each class in the support set."""
    if target != "labels":
        return not CLASSES[cls].classes_only
    if issubclass(cls, TransferLearner):  # these count the classes of a batch
        return bool(batch.support_y.max() == 1)
    seen = not issubclass(cls, SupportClassLearner) or batch.query_y.max() <= batch.support_y.max()
    return bool(seen) and not CLASSES[cls].numbers_only


def either_steps_or_says_why(data):
    cls = data.draw(st.sampled_from(list(CLASSES)))
    batch, features, target = data.draw(episodes())
    fitting = target in FITTING and data.draw(st.integers(0, 3)) > 0
    if fitting:
        outputs, losses = FITTING[target]
        make = data.draw(st.sampled_from(sorted(MODELS.keys() - {"flat"})))
        loss_fn = LOSSES[data.draw(st.sampled_from(losses))]
    else:
        make, outputs = data.draw(st.sampled_from(sorted(MODELS))), data.draw(st.sampled_from([1, 2]))
        loss_fn = LOSSES[data.draw(st.sampled_from(sorted(LOSSES)))]
    chosen = data.draw(arguments(cls))
    needed = {"num_train_classes": 2} if issubclass(cls, TransferLearner) else {}
    torch.manual_seed(0)

    def step():
        learner = cls(MODELS[make](features, outputs), loss_fn, **needed, **chosen)
        return learner, learner.training_step(batch, 0)

    stepped, error = attempt(step)
    ordinary = make in ("mlp", "layer norm") and loss_fn in (LOSSES["cross-entropy"], LOSSES["squared"])
    if fitting and ordinary and suits(cls, target, batch) and not chosen and batch.support_x.dtype == torch.float32:
        assert error is None or not torch.isfinite(batch.support_x).all() or batch.support_x.abs().max() > 1e3, error
    event("stepped" if error is None else type(error).__name__)
    if error is not None:
        assert str(error)
        # Torch's own message, where model and data do not fit each other, comes with our advice.
        assert isinstance(error, DOCUMENTED) or chosen.get("task_chunk_size") == 1 or error.__notes__
        return
    learner, loss = stepped
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()
    for name, p in learner.named_parameters():
        assert p.grad is not None, name
        assert p.grad.shape == p.shape
        assert torch.isfinite(p.grad).all(), name
    result, error = attempt(lambda: learner.eval().evaluate(batch))
    if error is not None:
        assert isinstance(error, DOCUMENTED)
        return
    assert result.outputs.shape[:2] == (batch.num_tasks, 1)
    assert result.outputs.shape[2] == batch.query_x.shape[1]
    assert torch.isfinite(result.loss).all()


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


@settings(max_examples=100, **QUIET)
@given(st.data())
def test_every_step_is_finite_or_refused(data):
    either_steps_or_says_why(data)


@pytest.mark.slow
@settings(max_examples=2000, **QUIET)
@given(st.data())
def test_every_step_is_finite_or_refused_at_length(data):
    either_steps_or_says_why(data)


FLAGS = {
    "model.inner_lr": ["0.01", "-1", "nan", "fast", "null"],
    "model.inner_steps": ["1", "0", "1.5", "many"],
    "model.task_chunk_size": ["null", "1", "0"],
    "model.batch_statistics": ["batch", "support", "none"],
    "model.unknown": ["1"],
    "data.shots": ["1", "0", "x"],
    "data.tasks_per_batch": ["2", "-3"],
    "data.noise_std": ["0.1", "-0.1"],
    "data.unknown": ["1"],
    "trainer.precision": ["bf16-mixed", "16-mixed", "64-true", "12"],
    "trainer.accumulate_grad_batches": ["2", "0"],
}


@settings(max_examples=15, **QUIET)
@given(st.data())
def test_every_command_trains_or_is_refused(data):
    names = data.draw(st.lists(st.sampled_from(sorted(FLAGS)), max_size=3, unique=True))
    flags = [f"--{name}={data.draw(st.sampled_from(FLAGS[name]))}" for name in names]
    learner = data.draw(st.sampled_from([cls.__name__ for cls, entry in CLASSES.items() if not entry.classes_only]))
    fixed = ["--model.model=MLP", "--model.loss_fn=torch.nn.MSELoss", "--data=SinusoidDataModule"]
    quiet = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            line = command_line(["fit", f"--model={learner}", *fixed, *quiet, *flags])
        except DOCUMENTED:
            return
        except SystemExit as stopped:
            code = stopped.code
        else:
            code = None
    if code is not None:
        assert code == 2  # refused by the parser
        return
    assert torch.isfinite(line.trainer.callback_metrics["train/loss"])
