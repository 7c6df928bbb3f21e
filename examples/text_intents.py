"""Can a classifier of requests learn a new intent from one sentence?

MAML is trained on intents of CLINC150, and then adapts to five intents that training never saw.

Run: ``python examples/text_intents.py data/clinc150`` (about a minute on 2 cores). The folder holds ``data_full.json``
and ``domains.json`` of https://github.com/clinc/oos-eval. It prints the test accuracy beside baselines, and sentences
with their predicted intents.
"""

import argparse
from typing import Any

import lightning as L
import polars as pl
import torch

from lightning_meta import MAML, CLINC150DataModule, TextEncoder
from lightning_meta.analysis import compare_with_baselines


def main(root: str, steps: int = 1_000, **options: Any) -> None:
    """Train, compare, predict."""
    L.seed_everything(0)
    data = CLINC150DataModule(root, ways=5, shots=1, query_shots=5, tasks_per_batch=4, train_tasks=4 * steps, **options)
    learner = MAML(
        TextEncoder(num_classes=5), inner_lr=10.0, inner_steps=3, optimizer=lambda p: torch.optim.Adam(p, lr=3e-3)
    )
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(learner, data)
    print(compare_with_baselines(data, learner))
    print(f"ci95: half-widths of 95 % intervals {data.interval_scope}")

    rows, preparation = data.texts()["test"], data.preparation
    assert rows is not None
    assert preparation is not None
    text, label = data.text_column, data.label_column
    intents = sorted(rows[label].unique())[:5]
    rows = rows.filter(rows[label].is_in(intents))
    labelled = rows.group_by(label, maintain_order=True).head(1).sort(label)  # one sentence of each intent
    others = rows.join(labelled, on=text, how="anti").group_by(label, maintain_order=True).head(3)
    task = learner.eval().adapt(preparation.inputs(labelled), torch.arange(5))
    predicted = [intents[i] for i in task(preparation.inputs(others)).argmax(1)]
    print(others.select(text, label).with_columns(prediction=pl.Series(predicted)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    main(parser.parse_args().root)
