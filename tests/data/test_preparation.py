"""How data are prepared, in checkpoints."""

from pathlib import Path

import lightning as L
import polars as pl
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, SinusoidDataModule
from lightning_meta.data.preparation import ClassTargets, Preparation, RealTargets


class Doubled(Preparation):
    kind = "doubled"

    def __init__(self, factor: float = 2.0, **options) -> None:
        super().__init__(**options)
        self.factor = factor

    def read(self, source: str | Path, labelled: bool) -> pl.DataFrame:
        return pl.read_csv(source)

    def inputs(self, rows: pl.DataFrame) -> torch.Tensor:
        return self.factor * rows["x"].to_torch()

    def _own_state(self):
        return {"factor": self.factor}


def prepared(factor: float = 2.0) -> Doubled:
    return Doubled(factor, target_column="y", task_column=None, targets=RealTargets(1.0, 4.0))


class PreparedSinusoids(SinusoidDataModule):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__(train_tasks=25, val_tasks=5, test_tasks=5)
        self.preparation = prepared(factor)


@pytest.mark.parametrize("targets", [RealTargets(1.0, 4.0), ClassTargets(), ClassTargets(("no", "yes"))])
def test_state_is_plain_and_builds_an_equal_preparation(targets, tmp_path):
    first = Doubled(3.0, target_column="y", task_column="t", targets=targets)
    torch.save(first.state(), tmp_path / "state.pt")
    again = Doubled.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.state() == first.state()
    assert again.targets == targets


@pytest.mark.parametrize(
    "change",
    [
        {"factory": 1},
        {"target_column": 5},
        {"target_column": None},
        {"task_column": ["a"]},
        *(
            {"targets": targets}
            for targets in (
                None,
                3,
                [1],
                {"mean": 1.0},
                {"mean": 0.0, "std": 0.0},
                {"mean": 0.0, "std": -1.0},
                {"mean": 0.0, "std": float("nan")},
                {"mean": float("inf"), "std": 1.0},
                {"mean": "0", "std": "1"},
                {"mean": torch.ones(2), "std": 1.0},
                {"classes": "01"},
                {"classes": 7},
                {"classes": ()},
                {"classes": ("0",)},
                {"classes": (0, 1)},
                {"classes": ("0", "1", "0")},
            )
        ),
    ],
)
def test_a_changed_state_is_refused(change):
    with pytest.raises(ValueError, match="preparation of doubled data cannot be used"):
        Doubled.from_state({**prepared().state(), **change})


def test_classes_may_be_a_list():
    state = {**prepared().state(), "targets": {"classes": ["no", "yes"]}}
    assert Doubled.from_state(state).targets == ClassTargets(("no", "yes"))


def test_messages_name_few_classes():
    with pytest.raises(ValueError, match=r"none of the classes 'c0', .*'c9', \.\.\.$"):
        ClassTargets().labels(pl.Series("y", ["q"]), tuple(f"c{number}" for number in range(100_000)))


def test_targets():
    values = pl.Series("y", [9, -3])
    torch.testing.assert_close(RealTargets(1.0, 4.0).standardized(values), torch.tensor([[2.0], [-1.0]]))
    assert ClassTargets().labels(pl.Series("y", [9, 3, 9]), ("3", "9")).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="column 'y' holds '-3', which is none of the classes '3', '9'"):
        ClassTargets().labels(values, ("3", "9"))


def test_checkpoints_keep_it_and_other_preparations_are_refused(tmp_path):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
    trainer.fit(MAML(MLP(), nn.MSELoss()), PreparedSinusoids())
    checkpoint = trainer.checkpoint_callback.best_model_path
    kept = torch.load(checkpoint, weights_only=True)["meta_learner_preparation"]
    assert Doubled.from_state(kept).state() == prepared().state()
    trainer.test(MAML(MLP(), nn.MSELoss()), PreparedSinusoids(), ckpt_path=checkpoint)
    with pytest.raises(ValueError, match=r"prepared with factor=2.0, and the data module has 3.0"):
        trainer.test(MAML(MLP(), nn.MSELoss()), PreparedSinusoids(3.0), ckpt_path=checkpoint)
