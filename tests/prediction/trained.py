"""Checkpoints of short trainings on made tables, texts and pictures."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
from PIL import Image
from torch import nn

from lightning_meta import (
    MAML,
    MLP,
    Conv4,
    ImageFolderDataModule,
    ProtoNet,
    TabularTasksDataModule,
    TextDataModule,
    TextEncoder,
)

FEATURES = 3  # "size", "color=blue", "color=red"
VALIDATED = 24  # validation tasks: enough for a coverage of 0.95, and too few for 0.99


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return L.Trainer(**{"max_epochs": 1, "default_root_dir": folder, **quiet, **options})


def visits(patients: int = 20, rows: int = 12, seed: int = 0) -> pl.DataFrame:
    """Patients whose pain is 50 and a multiple of their size."""
    random = np.random.default_rng(seed)
    size, slope = random.normal(size=(patients, rows)), random.normal(size=(patients, 1))
    color = random.choice(["red", "blue"], size=(patients, rows))
    return pl.DataFrame(
        {
            "patient": np.repeat([f"p{i}" for i in range(patients)], rows),
            "size": size.ravel(),
            "color": color.ravel(),
            "pain": (50 + 10 * slope * size).ravel(),
            "sick": np.where(size.ravel() > 0, "yes", "no"),
        }
    )


def table_checkpoint(folder: Path, cls: Any = MAML, **options: Any) -> str:
    visits().write_csv(folder / "visits.csv")
    data = TabularTasksDataModule(
        folder / "visits.csv",
        "patient",
        "pain",
        ["size", "color"],
        shots=5,
        query_shots=5,
        train_tasks=40,
        val_tasks=VALIDATED,
    )
    model = MLP(FEATURES, 1, hidden=[8])
    trained = trainer(folder)
    trained.fit(cls(model, nn.MSELoss(), **{"inner_lr": 0.05, "inner_steps": 2, **options}), data)
    return trained.checkpoint_callback.best_model_path


def class_table_checkpoint(folder: Path) -> str:
    visits().write_csv(folder / "visits.csv")
    data = TabularTasksDataModule(
        folder / "visits.csv", "patient", "sick", ["size"], shots=6, query_shots=5, task="classification",
        train_tasks=200, val_tasks=VALIDATED,
    )  # fmt: skip
    trained = trainer(folder)
    trained.fit(MAML(MLP(1, 2, hidden=[8]), inner_lr=0.5, inner_steps=3), data)
    return trained.checkpoint_callback.best_model_path


def sentences(intents: int = 12, each: int = 12) -> pl.DataFrame:
    """Intents with two words of their own among common ones."""
    rows = [
        (f"please {a} {i}a {i}b now", f"intent {i:02}")
        for i in range(intents)
        for a in [chr(ord("a") + j) * 3 for j in range(each)]
    ]
    return pl.DataFrame(rows, schema=["request", "intent"], orient="row")


def text_checkpoint(folder: Path, cls: Any = ProtoNet, outputs: int = 16) -> str:
    sentences().write_csv(folder / "requests.csv")
    data = TextDataModule(
        folder / "requests.csv", "request", "intent", ways=3, shots=2, query_shots=4, vocabulary_size=256,
        hash_buckets=128, train_tasks=40, val_tasks=VALIDATED, val_classes=0.25, test_classes=0.25,
    )  # fmt: skip
    trained = trainer(folder)
    trained.fit(cls(TextEncoder(outputs, vocabulary_size=256, embedding_size=16)), data)
    return trained.checkpoint_callback.best_model_path


def picture(path: Path, hue: int, seed: int) -> None:
    """A noisy square of one color."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 40, (20, 20, 3))
    color = np.array([hue, 255 - hue, (hue * 7) % 256])
    Image.fromarray(np.clip(color + noise - 20, 0, 255).astype(np.uint8)).save(path)


def image_checkpoint(folder: Path, batch_statistics: Any = "support") -> str:
    for split, hues in {"train": (0, 60, 120, 200), "val": (30, 90, 160)}.items():
        for hue in hues:
            for i in range(6):
                picture(folder / "pictures" / split / f"hue{hue}" / f"{i}.png", hue, hue + i)
    data = ImageFolderDataModule(
        folder / "pictures", image_size=16, ways=3, shots=2, query_shots=3, train_tasks=16, val_tasks=VALIDATED
    )
    trained = trainer(folder)
    trained.fit(ProtoNet(Conv4(8, in_channels=3, filters=4), batch_statistics=batch_statistics), data)
    return trained.checkpoint_callback.best_model_path
