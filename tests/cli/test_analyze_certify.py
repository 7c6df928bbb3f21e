"""``lightning-meta analyze certify``: what it certifies, and what its sentences say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from lightning_meta import MAML, MLP, ProtoNet, SinusoidDataModule
from lightning_meta.analysis import upper_bound
from lightning_meta.cli import main
from lightning_meta.cli.analyze.certify import certify_report, method_for
from tests.registry import BY_NAME
from tests.shipped import QUIET, ROOT

CONFIG = ["--config", str(ROOT / "configs/sinusoid_maml.yaml"), *QUIET, "--data.test_tasks=40", "--data.val_tasks=20"]


class TwoTasks(type(BY_NAME["ProtoNet"].data().episodes("test"))):
    """Class tasks whose disjoint ones are others, half as many."""

    def disjoint(self):
        return type(self)(self.dataset, self.ways, self.shots, self.query_shots, "test", 20, 1)


def class_data():
    data = BY_NAME["ProtoNet"].data(test_tasks=40, tasks_per_batch=7)
    own = data.episodes("test")
    tasks = TwoTasks(own.dataset, own.ways, own.shots, own.query_shots, "test", 40, 0)
    data.episodes = lambda split: tasks
    return data


def classifier() -> ProtoNet:
    torch.manual_seed(0)
    return ProtoNet(nn.Linear(1, 4)).eval()


def test_the_report_of_a_regression(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report = main(["analyze", "certify", *CONFIG, "--largest_loss=20", "--clip=true", "--output=found"])
    content = json.loads((tmp_path / "found/report.json").read_text())
    losses = np.array(content["values"]["losses"]["MAML"])
    assert len(losses) == 40
    bound = 20 * upper_bound(np.minimum(losses, 20) / 20)
    assert content["values"]["certificates"]["MAML"]["bound"] == pytest.approx(bound)
    assert set(content["values"]["certificates"]) == {"MAML", "no adaptation", "mean of the support"}
    out = " ".join(capsys.readouterr().out.split())
    assert "the expected minimum of loss and 20 of MAML on new tasks drawn as these were (if the test" in out
    assert f"is at most {bound:.4g}." in out
    assert "all of them together with 0.8 at least" in out
    assert report.advice[-1].startswith("This holds only if the test tasks were used neither")
    assert (tmp_path / "found/losses.png").stat().st_size > 0


def test_a_loss_without_a_limit_needs_one_from_validation_tasks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["analyze", "certify", *CONFIG])
    error = capsys.readouterr().err
    assert "largest_loss=None" in error
    assert "the 99 % quantile of the losses on 20 validation tasks" in error


def test_a_loss_above_its_stated_limit_is_told():
    learner = MAML(MLP(), nn.MSELoss())
    with pytest.raises(ValueError, match=r"values above largest=0.0001.*raise largest .* or ask for clip"):
        certify_report(learner, SinusoidDataModule(test_tasks=10), largest_loss=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"num_tasks": 1}, "has 1 tasks, too few for method='betting'.*at least 2"),
        ({"delta": 2.0}, "delta=2.0 must lie between 0 and 1"),
        ({"settings": 0}, "settings=0"),
        ({"quantile": 1.5}, "quantile=1.5 must lie between 0 and 1"),
        ({"largest_loss": -1.0}, "largest_loss=-1.0 must be a positive number"),
        ({"num_tasks": 500}, "500 tasks are asked for, and the data module has 40"),
    ],
)
def test_bad_arguments_are_told_before_tasks_are_evaluated(options, message, monkeypatch):
    learner = classifier()
    monkeypatch.setattr(learner, "evaluate", lambda *_, **__: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        certify_report(learner, class_data(), **options)


def test_drawn_and_disjoint_tasks_say_what_they_certify():
    drawn = certify_report(classifier(), class_data())
    assert "of ProtoNet on new tasks of these same test classes is at most" in drawn.advice[0]
    assert "--tasks disjoint" in drawn.advice[1]
    disjoint = certify_report(classifier(), class_data(), tasks="disjoint")
    assert "on new tasks of new classes, drawn as these were, is at most" in disjoint.advice[0]
    assert not any("--tasks disjoint" in sentence for sentence in disjoint.advice)
    assert disjoint.values["certificates"]["ProtoNet"]["tasks"] == 20
    assert disjoint.values["losses"]["ProtoNet"] != drawn.values["losses"]["ProtoNet"][:20]
    assert list(disjoint.values["losses"]) == ["ProtoNet", "nearest prototype"]


def test_errors_of_one_query_have_the_exact_bound_and_others_betting():
    assert certify_report(classifier(), class_data()).values["certificates"]["ProtoNet"]["method"] == "betting"
    single = SinusoidDataModule(eval_query_shots=1).episodes("test")
    assert method_for(single, "error", 2) == "clopper_pearson"
    assert method_for(single, "loss", 2) == "betting"


def test_settings_and_the_learner_stays_in_its_mode():
    learner = MAML(MLP(), nn.MSELoss()).train()
    report = certify_report(learner, SinusoidDataModule(test_tasks=30), largest_loss=50.0, clip=True, settings=5)
    assert learner.training
    assert any("whichever of the 5 settings" in sentence for sentence in report.advice)
    own = report.values["certificates"]["MAML"]
    losses = np.minimum(report.values["losses"]["MAML"], 50) / 50
    assert own["bound"] == pytest.approx(50 * upper_bound(losses, 0.01))
