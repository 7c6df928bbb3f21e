"""``lightning-meta analyze diagnose``."""

import json

import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, ProtoNet, SinusoidDataModule
from lightning_meta.cli import main
from lightning_meta.cli.analyze.diagnose import diagnose_report
from tests.analysis.diagnosis.made_cases import related_classes

CONFIG = """
seed_everything: 0
trainer: {accelerator: cpu}
model:
  class_path: MAML
  init_args:
    model: {class_path: lightning_meta.models.MLP, init_args: {hidden: [8]}}
    loss_fn: torch.nn.MSELoss
    inner_steps: 2
data:
  class_path: SinusoidDataModule
  init_args: {shots: 5, train_tasks: 32, tasks_per_batch: 8, val_tasks: 30}
"""


def test_the_command_prints_and_saves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text(CONFIG)
    arguments = ["analyze", "diagnose", "--config", "experiment.yaml", "--output", "found", "--num_tasks", "20"]
    arguments += ["--tuning_tasks", "10", "--scratch_steps", "3", "--shots", "[5,10]", "--train_sizes", "[2,8]"]
    report = main([*arguments, "--train_steps", "4"])
    printed = capsys.readouterr()
    assert "joint fine-tuned" in printed.out
    assert "GPU available" not in printed.err + printed.out
    for announced in ("outer steps", "fine-tuning", "from scratch", "distinct tasks"):
        assert f"diagnose: training {announced}" in printed.err or announced in printed.err
    saved = json.loads((tmp_path / "found" / "report.json").read_text())
    assert saved["values"]["verdict"] in ("pays", "no gain", "cannot tell", "memorized")
    assert len(saved["values"]["steps"]["loss"]) == 5  # 0 to twice the inner steps
    assert len(saved["values"]["steps"]["loss"][0]) == 20
    assert set(saved["values"]["curves"]["training tasks"]) == {"2", "8"}
    assert [row["what"] for row in saved["table"]] == report.table["what"].to_list()
    assert {path.name for path in (tmp_path / "found").iterdir()} == {"report.json", "diagnosis.png", "curves.png"}
    parts = report.table["part"].unique(maintain_order=True).to_list()
    assert parts == ["inner steps", "baseline", "support, seen", "support, new", "gap", "training tasks", "shots"]


def test_too_few_tasks_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text(CONFIG)
    few, one = (["--num_tasks", "40"], "the data module has 30"), (["--num_tasks", "1"], "num_tasks=1")
    none = ["--num_tasks", "8", "--train_sizes", "[2]", "--train_steps", "0"], "train_steps=0 must be an integer"
    for flags, message in (few, one, none):
        with pytest.raises(SystemExit) as stopped:
            main(["analyze", "diagnose", "--config", "experiment.yaml", *flags])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_a_metric_learner_of_classes():
    learner, data = related_classes(0)
    assert isinstance(learner, ProtoNet)
    report = diagnose_report(learner, data, num_tasks=30)
    assert report.table.columns == ["part", "what", "error rate", "low", "high", "loss"]
    rows = {(row["part"], row["what"]): row for row in report.table.iter_rows(named=True)}
    assert rows["baseline", "constant"]["error rate"] == pytest.approx(0.8)
    assert ("baseline", "joint") not in rows  # its model gives features, not classes
    assert rows["inner steps", "0"]["error rate"] == rows["support, new", "own"]["error rate"]
    assert report.values["unit_of_scores"] == "error rate"


def test_the_learner_does_not_change():
    learner = MAML(MLP(1, 1, hidden=[8]), nn.MSELoss()).train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    data = SinusoidDataModule(shots=5, train_tasks=50)
    state = torch.random.get_rng_state()
    report = diagnose_report(learner, data, 10, 5, scratch_steps=2)
    assert learner.training
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    again = diagnose_report(learner, data, 10, 5, scratch_steps=2)
    assert report.table.equals(again.table)


class Scaled(nn.Module):
    """A layer without `reset_parameters`."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * x


@pytest.mark.parametrize(
    ("options", "cure"),
    [({}, "joint_epochs=0"), ({"train_sizes": [2], "joint_epochs": 0, "scratch_steps": 0}, "leave out train_sizes")],
)
def test_a_model_that_cannot_start_anew_is_told_before_any_work(options, cure, monkeypatch):
    learner = MAML(Scaled(), nn.MSELoss())
    monkeypatch.setattr(learner, "map_tasks", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=f"a Scaled, has no reset_parameters.*{cure}"):
        diagnose_report(learner, SinusoidDataModule(shots=5, train_tasks=20), **options)
