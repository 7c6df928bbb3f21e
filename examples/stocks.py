"""Do shares have enough of their own to learn their volatility from twenty days?

MAML beside ridge regressions on the S&P 500.

Run: ``python examples/stocks.py data/sp500_5yr`` (about a minute on 2 cores). The folder holds
``individual_stocks_5yr.zip`` of https://github.com/CNuge/kaggle-code. Test shares and days are later than, and apart
from, those of the training. It prints root mean squared errors of the logarithm of volatility.
"""

import argparse

import lightning as L
import torch
from torch import nn

from lightning_meta import MAML, MLP, SP500DataModule
from lightning_meta.analysis import compare_with_baselines


def main(root: str, steps: int = 1_500) -> None:
    """Train and compare."""
    L.seed_everything(0)
    data = SP500DataModule(root, target="volatility", tasks_per_batch=16, train_tasks=16 * steps)
    learner = MAML(
        MLP(data.num_features, hidden=[40, 40]), nn.MSELoss(), inner_lr=0.05, inner_steps=5,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-3),
    )  # fmt: skip
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(learner, data)
    print(compare_with_baselines(data, learner))
    print(f"ci95: half-widths of 95 % intervals {data.interval_scope}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    main(parser.parse_args().root)
