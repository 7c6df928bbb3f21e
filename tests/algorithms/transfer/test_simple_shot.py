"""SimpleShot against numpy, and the center that is measured on the training examples."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from lightning_meta import Episode, EpisodicDataModule, SimpleShot, collate_episodes

pytestmark = pytest.mark.usefixtures("float64")
CLASSES = 6


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 4))


def examples(seed, count=310):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    centers = torch.randn(CLASSES, 3, generator=torch.Generator().manual_seed(9))
    return TensorDataset(centers[labels] + 0.3 * torch.randn(count, 3, generator=generator) + 1, labels)


def data_module(count=310, **options):
    sizes = {"ways": 3, "shots": 2, "query_shots": 3, "val_tasks": 4, "test_tasks": 4, "tasks_per_batch": 2}
    return EpisodicDataModule(
        examples(0, count), examples(1), examples(2), **{**sizes, "joint_batch_size": 62, **options}
    )


def task(ways, shots, queries, seed=0):
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(ways * shots, generator=generator)
    x = torch.randn(ways * shots, 3, generator=generator)
    labels = torch.arange(ways * shots) % ways
    return Episode(x, labels[order], torch.randn(queries, 3, generator=generator), torch.arange(queries) % ways)


def by_numpy(model, one, normalization, center):
    """The paper's transforms, then negative squared distances to centroids, example by example."""
    with torch.no_grad():
        support, query = model.eval()(one.support_x).numpy(), model(one.query_x).numpy()

    def transformed(f):
        if normalization == "cl2n":
            f = f - center
        return f if normalization == "un" else f / np.linalg.norm(f)

    support = np.stack([transformed(f) for f in support])
    labels = one.support_y.numpy()
    centroids = [support[labels == k].mean(axis=0) for k in range(labels.max() + 1)]
    return np.array([[-np.sum((transformed(f) - c) ** 2) for c in centroids] for f in query])


@pytest.mark.parametrize("normalization", ["un", "l2n", "cl2n"])
def test_transforms_and_distances_are_the_papers(normalization, model):
    x = torch.randn(100, 3)
    learner = SimpleShot(model, normalization=normalization).eval()
    learner.measure_center([x[:70], x[70:]])
    with torch.no_grad():
        center = model(x).mean(0).numpy()
    tasks = [task(5, 3, 8), task(5, 3, 8, 1)]
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    for one, output in zip(tasks, outputs, strict=True):
        expected = torch.from_numpy(by_numpy(model, one, normalization, center))
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(learner.adapt(one.support_x, one.support_y)(one.query_x), expected)


def test_padding_and_absent_classes_do_not_change_a_task(model):
    learner = SimpleShot(model).eval()
    learner.measure_center([torch.randn(10, 3)])
    tasks = [task(2, 6, 4), task(3, 1, 7, 1), task(6, 2, 5, 2)]
    outputs = learner.evaluate(collate_episodes(tasks)).outputs[:, -1]
    for one, output in zip(tasks, outputs, strict=True):
        alone = learner.adapt(one.support_x, one.support_y)(one.query_x)
        torch.testing.assert_close(output[: len(alone), : alone.shape[1]], alone)
        assert (output[: len(alone), alone.shape[1] :] == -torch.inf).all()


def test_training_is_that_of_a_plain_classifier():
    model = nn.Linear(3, 4)
    learner, one = SimpleShot(model, num_train_classes=CLASSES), data_module().joint_batches()[0]
    expected = F.cross_entropy(learner.classifier(model(one.query_x)), one.query_y)
    slopes = torch.autograd.grad(expected, list(learner.parameters()))
    loss = learner.training_step(collate_episodes([one]), 0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected.detach())
    for parameter, slope in zip(learner.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)


def trainer(folder, **options):
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", default_root_dir=folder, **{"max_epochs": 2, **silent, **options})


def center_of(model, data):
    with torch.no_grad():
        return model.eval()(data.datasets()["train"].tensors[0]).mean(0)


@pytest.mark.parametrize("validates", [True, False])
def test_the_center_is_the_trained_models_and_checkpoints_keep_it(tmp_path, validates, model):
    data, learner = data_module(), SimpleShot(model, num_train_classes=CLASSES)
    run = trainer(tmp_path, limit_val_batches=None if validates else 0)
    run.fit(learner, data)
    expected = center_of(model, data)
    torch.testing.assert_close(learner.center, expected)
    path = run.checkpoint_callback.best_model_path
    loaded = SimpleShot.load_from_checkpoint(path)
    assert torch.equal(loaded.center, learner.center)
    other = data_module(seed=1)
    with torch.no_grad():
        loaded.center += 1  # a test keeps a center that is known
    (found,) = run.test(loaded, other, verbose=False)
    torch.testing.assert_close(loaded.center, expected + 1)
    assert 0 <= found["test/acc"] <= 1


def test_a_model_trained_elsewhere_is_centered_by_the_test(tmp_path, model):
    data, learner = data_module(joint_batch_size=None), SimpleShot(model)
    trainer(tmp_path).test(learner, data, verbose=False)
    torch.testing.assert_close(learner.center, center_of(model, data))


def test_no_part_of_the_examples_is_too_small_to_normalize(tmp_path):
    """257 examples are one more than are taken at once."""
    data, learner = (
        data_module(257, joint_batch_size=None),
        SimpleShot(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))),
    )
    trainer(tmp_path).test(learner, data, verbose=False)
    torch.testing.assert_close(learner.center, torch.zeros(4), rtol=0, atol=1e-6)  # both parts are centered


def test_a_center_that_is_not_known_is_no_zero(model):
    one = task(3, 2, 5)
    with pytest.raises(ValueError, match=r"normalization=\"cl2n\" needs the mean feature.*call measure_center"):
        SimpleShot(model).adapt(one.support_x, one.support_y)
    with pytest.raises(ValueError, match=r"normalization='l2' is not one of \['un', 'l2n', 'cl2n'\]"):
        SimpleShot(model, normalization="l2")
    repeated = nn.Sequential(nn.Linear(3, 1), nn.Unflatten(1, (1, 1)), nn.Upsample(scale_factor=4), nn.Flatten())
    with pytest.raises(ValueError, match="model gives 4 features.*set num_features=4"):
        SimpleShot(repeated).measure_center([one.support_x])


def test_an_adapted_task_keeps_its_center(model):
    learner, one = SimpleShot(model).eval(), task(3, 2, 5)
    learner.measure_center([torch.randn(10, 3)])
    adapted = learner.adapt(one.support_x, one.support_y)
    before = adapted(one.query_x)
    learner.measure_center([torch.randn(10, 3) + 5])
    assert torch.equal(adapted(one.query_x), before)
    assert not torch.allclose(learner.adapt(one.support_x, one.support_y)(one.query_x), before)


def test_a_checkpoint_inside_an_epoch_is_centered_by_the_test(tmp_path, model):
    """A validation before training measures the untrained model's center, which is not that of the checkpoint."""
    saves = L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="inside", every_n_train_steps=3, save_top_k=-1)
    learner, data = SimpleShot(model, num_train_classes=CLASSES), data_module()
    trainer(tmp_path, max_epochs=1, callbacks=[saves]).fit(learner, data)
    loaded = SimpleShot.load_from_checkpoint(tmp_path / "inside.ckpt")
    trainer(tmp_path).test(loaded, data, verbose=False)
    torch.testing.assert_close(loaded.center, center_of(loaded.model, data))


def test_a_second_training_measures_its_own_center(tmp_path, model):
    learner, data = SimpleShot(model, num_train_classes=CLASSES), data_module()
    quiet = {"num_sanity_val_steps": 0, "limit_val_batches": 0, "enable_checkpointing": False}
    for _ in range(2):
        trainer(tmp_path, max_epochs=1, **quiet).fit(learner.train(), data)
        torch.testing.assert_close(learner.center, center_of(learner.model, data))


def test_measuring_the_center_reads_no_labels(tmp_path, model):
    class Counting(TensorDataset):
        reads = 0

        @property
        def targets(self):
            self.reads += 1
            return self.tensors[1]

    train = Counting(*examples(0).tensors)
    data = EpisodicDataModule(train, examples(1), ways=3, shots=2, query_shots=3, val_tasks=4, joint_batch_size=62)
    before = train.reads
    trainer(tmp_path).fit(SimpleShot(model, num_train_classes=CLASSES), data)
    assert train.reads == before > 0
