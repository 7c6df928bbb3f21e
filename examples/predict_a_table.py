"""How do I get from a table to predictions for a new patient?

MAML is trained on the patients in a CSV file. Five visits of a new patient are then enough to predict the others.

Run: ``python examples/predict_a_table.py`` (half a minute). It writes two tables and a checkpoint to
``outputs/predict_a_table`` and prints the predictions beside the truth, and MAML beside baselines.
"""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
from torch import nn

from lightning_meta import MAML, MLP, FewShotPredictor, TabularTasksDataModule
from lightning_meta.analysis import compare_with_baselines


def visits(patients: int, visits_each: int, seed: int) -> pl.DataFrame:
    """Made visits: a patient's pain is a curve of the dose with a height and a best dose of the patient's own."""
    random = np.random.default_rng(seed)
    height, best = random.uniform(2, 8, (patients, 1)), random.uniform(20, 80, (patients, 1))
    dose = random.uniform(0, 100, (patients, visits_each))
    pain = 10 - height * np.exp(-(((dose - best) / 25) ** 2)) + random.normal(0, 0.2, dose.shape)
    names = np.repeat([f"patient {number}" for number in range(patients)], visits_each)
    return pl.DataFrame({"patient": names, "dose": dose.ravel(), "pain": pain.ravel()})


def main(epochs: int = 10, train_tasks: int = 3_200, **options: Any) -> None:
    """Train, compare, predict."""
    folder = Path("outputs/predict_a_table")
    folder.mkdir(parents=True, exist_ok=True)
    visits(200, 30, seed=0).write_csv(folder / "visits.csv")
    new = visits(1, 25, seed=1)
    new.head(5).write_csv(folder / "labelled.csv")
    new.tail(20).drop("pain").write_csv(folder / "new.csv")

    L.seed_everything(0)
    data = TabularTasksDataModule(
        folder / "visits.csv",
        "patient",
        "pain",
        shots=5,
        query_shots=15,
        tasks_per_batch=16,
        train_tasks=train_tasks,
        **options,
    )
    learner = MAML(MLP(data.num_features), nn.MSELoss(), inner_lr=0.05, inner_steps=5)
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder)
    trainer.fit(learner, data)
    trainer.save_checkpoint(folder / "trained.ckpt")

    print(compare_with_baselines(data, learner))
    print(f"ci95: half-widths of 95 % intervals {data.interval_scope}")
    predictions = (
        FewShotPredictor.from_checkpoint(folder / "trained.ckpt")
        .adapt(folder / "labelled.csv")
        .predict(folder / "new.csv")
    )
    print(predictions.select("dose", "mean", "lower_90", "upper_90").with_columns(truth=new.tail(20)["pain"]))


if __name__ == "__main__":
    main()
