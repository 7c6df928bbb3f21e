"""Bad input gets an error that names the argument, the value and the cure, before training starts."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from lightning_meta import MAML, AmortizedMAML, Episode, ProtoNet
from lightning_meta.data import EpisodicDataModule, OmniglotDataModule, SinusoidDataModule
from lightning_meta.models import MLP, Conv4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inner_lr": 0.0}, ValueError, "inner_lr=0.0 must be a positive number"),
        ({"inner_lr": float("nan")}, ValueError, "inner_lr=nan must be a positive number"),
        ({"inner_steps": 0}, ValueError, "inner_steps=0 must be an integer of at least 1"),
        ({"inner_steps": 1.5}, ValueError, "inner_steps=1.5 must be an integer"),
        ({"eval_inner_steps": -1}, ValueError, "eval_inner_steps=-1 must be an integer"),
        ({"task_chunk_size": 0}, ValueError, "task_chunk_size=0 must be an integer"),
        ({"first_order_epochs": -2}, ValueError, "first_order_epochs=-2"),
        ({"multi_step_loss_epochs": -2}, ValueError, "multi_step_loss_epochs=-2"),
        ({"adapt": "tail"}, ValueError, "adapt='tail' is not"),
        ({"adapt": ["fc.*"]}, ValueError, r"the pattern 'fc\.\*' matches no trainable parameter; they are \['weight'"),
        ({"adapt": "body"}, ValueError, "adapt='body' leaves no trainable parameter"),
        ({"learned_rates": "layer"}, ValueError, "learned_rates='layer' is not one of"),
        ({"inner_optimizer": "lbfgs"}, ValueError, "inner_optimizer='lbfgs' is not one of"),
        ({"loss_fn": nn.MSELoss}, TypeError, "loss_fn=.* must be a callable instance"),
        ({"loss_fn": 3}, TypeError, "loss_fn=3 must be a callable"),
        (
            {"loss_fn": nn.CrossEntropyLoss(reduction="none")},
            ValueError,
            "reduction='none', but a loss must be one number",
        ),
        (
            {"loss_fn": nn.Sequential(nn.Linear(1, 1))},
            ValueError,
            "has trainable parameters, which would not be trained",
        ),
        ({"model": nn.Linear}, TypeError, "model=.* must be a torch.nn.Module instance"),
        ({"model": nn.Linear(2, 1).requires_grad_(False)}, ValueError, "no parameter with requires_grad=True"),
        ({"inner_rate": 0.1}, TypeError, "unexpected keyword argument 'inner_rate'"),
    ],
)
def test_learner_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MAML(**{"model": nn.Linear(2, 3)} | arguments)


def classification(labels, query_labels=None):
    labels = torch.as_tensor(labels)
    query = labels if query_labels is None else torch.as_tensor(query_labels)
    return Episode(torch.randn(*labels.shape[:2], 2), labels, torch.randn(*query.shape[:2], 2), query)


@pytest.mark.parametrize("step", ["training_step", "validation_step", "predict_step"])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            classification([[0, 1, 3]]),
            r"support_y holds the label 3 and the model has 3 outputs, for labels 0 to 2: .* ProtoNet or R2D2",
        ),
        (classification([[0, 1, 2]], [[-1, 0]]), "query_y holds the label -1"),
        (classification([[0.0, 1.0, 2.0]]), r"support_y is torch.float32 and the loss needs integer class labels"),
        (
            classification(torch.tensor([[0, 1]], dtype=torch.int32)),
            "torch.int32 and the loss needs class labels of dtype torch.int64",
        ),
        (classification([[0, 1]])._replace(support_y=torch.tensor([0, 1])), "must share their leading"),
        (classification([[0, 1]])._replace(support_y=torch.tensor([[0, 1, 2]])), "must share their leading"),
        (classification(torch.zeros(1, 0, dtype=torch.long)), "holds no example"),
        (classification([[0], [1]], [[1]]), "support_x holds 2 tasks and query_x 1"),
        (
            classification([[0, 1]])._replace(support_mask=torch.tensor([[1, 1]])),
            "support_mask must be boolean of shape",
        ),
        (
            classification([[0, 1]])._replace(query_mask=torch.tensor([[False, False]])),
            "query_mask leaves task 0 without",
        ),
    ],
)
def test_batches(batch, message, step):
    with pytest.raises(ValueError, match=message):
        getattr(MAML(nn.Linear(2, 3)), step)(batch, 0)


def test_a_batch_of_another_type():
    with pytest.raises(TypeError, match="batch is a list, not an Episode"):
        MAML(nn.Linear(2, 3)).training_step([torch.zeros(1)], 0)


def test_targets_that_would_broadcast():
    batch = Episode(torch.randn(2, 5, 1), torch.randn(2, 5), torch.randn(2, 5, 1), torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"support_y has shape \(\) per example and the model's output \(1,\)"):
        MAML(MLP(), nn.MSELoss()).training_step(batch, 0)
    with pytest.raises(ValueError, match="would broadcast"):
        MAML(MLP(), nn.MSELoss()).adapt(torch.randn(5, 1), torch.randn(5))


def test_labels_in_adapt():
    with pytest.raises(ValueError, match="support_y holds the label 5"):
        MAML(Conv4(5, filters=4)).adapt(torch.randn(6, 1, 28, 28), torch.arange(6))
    with pytest.raises(ValueError, match="steps=0 must be an integer"):
        MAML(MLP(), nn.MSELoss()).adapt(torch.randn(5, 1), torch.randn(5, 1), steps=0)


def test_divergence_names_task_step_and_rate():
    x, y = torch.randn(3, 5, 1), torch.randn(3, 5, 1)
    y[1] *= 1e4
    learner = MAML(MLP(), nn.MSELoss(), inner_lr=50.0, inner_steps=6)
    with pytest.raises(
        FloatingPointError, match=r"task \d of the batch .* before inner step \d of 6 \(inner_lr=50.0\): lower"
    ):
        learner.training_step(Episode(x, y, x, y), 0)
    assert all(torch.isfinite(p).all() for p in learner.parameters())


def test_nan_in_the_data_is_told_from_divergence():
    x = torch.randn(2, 5, 1)
    x[1, 3] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"task 1 .* before inner step 1 of 1 .*: check its inputs and targets"
    ):
        MAML(MLP(), nn.MSELoss()).training_step(Episode(x, x, x, x), 0)


@pytest.mark.parametrize("call", ["training_step", "validation_step", "predict_step"])
@pytest.mark.parametrize("field", ["query_x", "query_y"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_queries_are_told_from_divergence(call, field, value):
    batch = Episode(*[torch.randn(3, 5, 1) for _ in range(4)])
    getattr(batch, field)[1, 3] = value
    learner = MAML(MLP(), nn.MSELoss(), inner_steps=2)
    with pytest.raises(
        FloatingPointError, match=r"task 1 .* on the query set after 2 inner steps .*: check its inputs and targets"
    ):
        getattr(learner, call)(batch, 0)


def test_padding_may_hold_anything_where_training_diverges():
    batch = Episode(*[torch.randn(2, 5, 1) for _ in range(4)])
    batch = batch._replace(support_y=1e4 * batch.support_y, query_mask=torch.tensor([[True] * 4 + [False]] * 2))
    batch.query_x[:, 4] = float("nan")
    with pytest.raises(FloatingPointError, match="task 0 .* lower the rate"):
        MAML(MLP(), nn.MSELoss(), inner_lr=1e30, inner_steps=1).training_step(batch, 0)


def test_divergence_in_the_last_step_is_told_by_adapt():
    learner = MAML(MLP(), nn.MSELoss(), inner_lr=1e38)
    with pytest.raises(FloatingPointError, match="task 0 is not finite after 1 inner steps .*: lower the rate"):
        learner.adapt(torch.randn(5, 1), 1e4 * torch.randn(5, 1))


def amortized(loss_fn=None, **options):
    outputs = 1 if loss_fn is None else 2
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, outputs))
    return AmortizedMAML(model, nn.MSELoss() if loss_fn is None else loss_fn, **options)


def amortized_batch(examples, classes):
    targets = torch.arange(examples).expand(3, -1) % 2 if classes else torch.randn(3, examples, 1)
    return Episode(torch.randn(3, examples, 2), targets, torch.randn(3, examples, 2), targets)


@pytest.mark.parametrize("call", ["training_step", "validation_step", "predict_step", "adapt"])
@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("examples", [3, 9])  # in the dual and in the primal
@pytest.mark.parametrize("classes", [False, True])
def test_amortized_learners_tell_broken_data_and_rates(call, chunk, examples, classes):
    loss_fn = nn.CrossEntropyLoss() if classes else None
    batch = amortized_batch(examples, classes)

    def run(learner, batch):
        if call == "adapt":
            return learner.adapt(batch.support_x[1], batch.support_y[1])
        return getattr(learner, call)(batch, 0)

    broken = batch._replace(support_x=batch.support_x.clone())
    broken.support_x[1, 2] = float("nan")
    task = 0 if call == "adapt" else 1
    with pytest.raises(FloatingPointError, match=rf"task {task} .* before inner step 1 of 2 .*: check its inputs"):
        run(amortized(loss_fn, inner_steps=2, task_chunk_size=chunk), broken)
    with pytest.raises(FloatingPointError, match=r"task 0 .*inner step.* \(inner_lr=1e\+30\): lower the rate"):
        run(amortized(loss_fn, inner_steps=3, inner_lr=1e30, task_chunk_size=chunk), batch)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x) if x.sum().item() > 0 else -self.layer(x)


def test_models_that_cannot_be_vectorized_are_told_of_the_chunk_size():
    batch = Episode(*[torch.randn(2, 5, 1) for _ in range(4)])
    with pytest.raises(RuntimeError, match="set task_chunk_size=1"):
        MAML(Branching(), nn.MSELoss()).training_step(batch, 0)
    loss = MAML(Branching(), nn.MSELoss(), task_chunk_size=1).training_step(batch, 0)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("call", ["validation_step", "predict_step", "adapt"])
def test_divergence_is_told_in_evaluation_too(call):
    x, y = torch.randn(2, 5, 1), torch.randn(2, 5, 1) * 1e4
    learner = MAML(MLP(), nn.MSELoss(), inner_lr=50.0, eval_inner_steps=8)
    with pytest.raises(FloatingPointError, match=r"before inner step \d of 8 \(inner_lr=50.0\): lower"):
        learner.adapt(x[0], y[0]) if call == "adapt" else getattr(learner, call)(Episode(x, y, x, y), 0)


def test_divergence_by_a_learned_rate_names_it():
    x = torch.randn(2, 5, 1)
    learner = MAML(MLP(), nn.MSELoss(), inner_lr=0.01, inner_steps=3, learned_rates="tensor")
    with torch.no_grad():
        for rate in learner.inner_rates.parameters():
            rate.fill_(1e25)
    with pytest.raises(FloatingPointError, match=r"inner_lr=0.01, largest learned rate 1e\+25"):
        learner.training_step(Episode(x, x, x, x), 0)


def test_broken_parameters_are_told_from_broken_data():
    x = torch.randn(2, 5, 1)
    learner = MAML(MLP(), nn.MSELoss())
    with torch.no_grad():
        learner.model.layers[0].bias[0] = float("inf")
    with pytest.raises(FloatingPointError, match="parameters are not finite themselves"):
        learner.training_step(Episode(x, x, x, x), 0)


def test_a_meta_gradient_that_overflows_is_not_applied():
    class Overflowing(MAML):
        def task_gradient(self, meta, task):
            gradient, result = super().task_gradient(meta, task)
            return {name: g * float("inf") for name, g in gradient.items()}, result

    x = torch.randn(2, 5, 1)
    with pytest.raises(FloatingPointError, match="the meta-gradient is not finite, though all losses are"):
        Overflowing(MLP(), nn.MSELoss()).training_step(Episode(x, x, x, x), 0)


def test_half_precision_is_refused_before_training(monkeypatch):
    learner = MAML(MLP(), nn.MSELoss())
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    monkeypatch.setattr(type(trainer), "precision", "16-mixed")
    with pytest.raises(ValueError, match="precision='16-mixed': .* use 'bf16-mixed'"):
        trainer.fit(learner, SinusoidDataModule(train_tasks=25))


def labelled(classes, each):
    return TensorDataset(torch.randn(classes * each, 2), torch.arange(classes).repeat_interleave(each))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EpisodicDataModule(labelled(4, 20), ways=5), ValueError, "ways=5 but the train split has 4 classes"),
        (
            lambda: EpisodicDataModule(labelled(9, 20), val=labelled(9, 5), shots=2, query_shots=4),
            ValueError,
            "shots=2 and query_shots=4 need 6 examples per class, but in the val split 9 classes have fewer",
        ),
        (lambda: EpisodicDataModule(labelled(9, 20), ways=1), ValueError, "ways=1 must be an integer of at least 2"),
        (lambda: EpisodicDataModule(labelled(9, 20), shots=0), ValueError, "shots=0 must be"),
        (lambda: EpisodicDataModule(labelled(9, 20), tasks_per_batch=0), ValueError, "tasks_per_batch=0 must be"),
        (lambda: EpisodicDataModule(Stream()), TypeError, "train=.* must be a map-style data set"),
        (lambda: EpisodicDataModule(labelled(9, 20)).test_dataloader(), ValueError, "made with test=None"),
        (lambda: SinusoidDataModule(shots=0), ValueError, "shots=0 must be"),
        (lambda: SinusoidDataModule(noise_std=-1), ValueError, "noise_std=-1 must be 0 or"),
        (lambda: SinusoidDataModule(seed=-1), ValueError, "seed=-1 must be an integer of at least 0"),
        (lambda: SinusoidDataModule(seed=2**64), ValueError, "seed=18446744073709551616 must be less than 2.*64"),
        (
            lambda: EpisodicDataModule(labelled(9, 20), seed=2**70),
            ValueError,
            "must be less than 2.*64: take a smaller",
        ),
        (lambda: OmniglotDataModule("data", seed=2**64), ValueError, "seed=18446744073709551616 must be less than"),
        (lambda: SinusoidDataModule(seed=0.5), ValueError, "seed=0.5 must be an integer"),
        (
            lambda: OmniglotDataModule("data", character_split="random"),
            ValueError,
            "character_split='random' is not one of",
        ),
        (lambda: Conv4(downsampling="pool"), ValueError, "downsampling='pool' is not one of"),
        (lambda: Conv4(num_classes=0), ValueError, "num_classes=0 must be"),
        (lambda: MLP(hidden=(8, 0)), ValueError, "a layer's size=0 must be"),
    ],
)
def test_data_and_model_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_the_largest_seed_works():
    batch = next(iter(SinusoidDataModule(seed=2**64 - 1, train_tasks=25).train_dataloader()))
    assert torch.isfinite(batch.support_x).all()


def test_training_without_trainable_parameters_is_refused_and_evaluation_is_not():
    learner = ProtoNet(nn.Linear(3, 4).requires_grad_(False))
    labels = torch.tensor([[0, 1, 0, 1]])
    batch = Episode(torch.randn(1, 4, 3), labels, torch.randn(1, 4, 3), labels)
    assert learner.evaluate(batch).outputs.isfinite().all()
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        learner.training_step(batch, 0)
