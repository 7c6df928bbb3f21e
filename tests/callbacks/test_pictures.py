"""Pictures of a test run are drawn, say what the data say, and refuse what they cannot show."""

from __future__ import annotations

import lightning as L
import matplotlib.image
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from lightning_meta import MAML, MLP, AmortizedMAML, BayesianMAML, EpisodicDataModule, SinusoidDataModule
from lightning_meta.callbacks import PosteriorBands, ReliabilityDiagram


def outcome(learner, data, folder, *callbacks, **options):
    trainer = L.Trainer(
        logger=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_checkpointing=False,
        accelerator="cpu",
        **options,
    )
    return trainer.test(learner, data, verbose=False)[0]


@pytest.fixture
def classes():
    examples = TensorDataset(torch.randn(60, 4), torch.arange(6).repeat(10))
    return EpisodicDataModule(examples, test=examples, ways=3, query_shots=4, test_tasks=20, tasks_per_batch=8)


def test_the_reliability_diagram_shows_the_calibration_error_of_all_queries(tmp_path, classes, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda axis, title, *args, **kwargs: titles.append(title), raising=True
    )
    learner = MAML(nn.Linear(4, 3), inner_lr=1.0)
    outcome(learner, classes, tmp_path, ReliabilityDiagram())
    picture = matplotlib.image.imread(tmp_path / "reliability_diagram.png")
    assert picture[..., :3].std() > 0.05
    outputs, targets = [], []
    for batch in classes.test_dataloader():
        outputs.append(learner.evaluate(batch).outputs[:, -1].flatten(0, 1))
        targets.append(batch.query_y.flatten())
    error = multiclass_calibration_error(torch.cat(outputs).softmax(1), torch.cat(targets), 3)
    assert titles == [f"calibration error {100 * float(error):.2f} % over 240 queries"]


def test_the_reliability_diagram_refuses_regression(tmp_path):
    learner = MAML(nn.Linear(1, 1), nn.MSELoss())
    with pytest.raises(ValueError, match="ReliabilityDiagram"):
        outcome(learner, SinusoidDataModule(test_tasks=4), tmp_path, ReliabilityDiagram())


@pytest.mark.parametrize(
    ("learner", "precision"),
    [
        (MAML, "32-true"),
        (AmortizedMAML, "32-true"),
        (MAML, "bf16-true"),
        (BayesianMAML, "bf16-true"),
        (MAML, "64-true"),
    ],
)
def test_posterior_bands_are_drawn(tmp_path, learner, precision):
    own, data = learner(MLP(hidden=[8]), nn.MSELoss()), SinusoidDataModule(test_tasks=4)
    outcome(own, data, tmp_path, PosteriorBands(num_tasks=3), precision=precision)
    assert matplotlib.image.imread(tmp_path / "posterior_bands.png")[..., :3].std() > 0.05


def test_posterior_bands_refuse_images_of_many_inputs(tmp_path, classes):
    with pytest.raises(ValueError, match=r"draws one input against one output, not \(4,\)"):
        outcome(MAML(nn.Linear(4, 3)), classes, tmp_path, PosteriorBands())
