"""Sets of classes for the rows of files, and what is said where validation had too few tasks."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from lightning_meta import FewShotPredictor
from lightning_meta.cli import main
from tests.prediction.trained import sentences, table_checkpoint, text_checkpoint, visits


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_checkpoint(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    rows = sentences(3, each=10)
    rows.group_by("intent", maintain_order=True).head(1).write_csv(folder / "labelled.csv")
    rows.drop("intent").write_csv(folder / "new.csv")
    return folder


def test_a_set_has_the_classes_whose_scores_are_within_the_quantile(text, files):
    predictor = FewShotPredictor.from_checkpoint(text)
    tasks = predictor.adapt(files / "labelled.csv")
    sizes = []
    for coverage in (0.5, 0.95):
        found = tasks.predict(files / "new.csv", coverage)
        threshold = predictor.learner.validation_scores.quantile(coverage)
        names = [f"intent {i:02}" for i in range(3)]
        for row in found.iter_rows(named=True):
            probabilities = {name: row[f"probability_{name}"] for name in names}
            inside = [name for name in names if np.float32(1) - np.float32(probabilities[name]) <= threshold]
            assert json.loads(row["prediction_set"]) == inside
        sizes.append(sum(len(json.loads(own)) for own in found["prediction_set"]))
    assert sizes[0] <= sizes[1]


def test_names_of_classes_may_hold_anything(text, tmp_path):
    rows = sentences(2, each=4)
    odd = rows.with_columns(intent=rows["intent"].replace({"intent 00": 'a|"b', "intent 01": "ü, c"}))
    odd.write_csv(tmp_path / "odd.csv")
    predictor = FewShotPredictor.from_checkpoint(text)
    predictor.learner.validation_scores = predictor.learner.validation_scores._replace(
        quantiles=[1.0] * 1000 + [math.inf]
    )
    found = predictor.adapt(tmp_path / "odd.csv").predict(tmp_path / "odd.csv")
    assert found["prediction_set"][0] == '["a|\\"b", "ü, c"]'


def test_a_coverage_that_is_given_needs_enough_tasks(text, files, tmp_path, capsys):
    arguments = ["adapt", "--ckpt_path", text, "--support", str(files / "labelled.csv")]
    arguments += ["--query", str(files / "new.csv"), "--output", str(tmp_path / "found.csv")]
    with pytest.raises(SystemExit):
        main([*arguments, "--coverage=0.99"])
    assert "coverage=0.99, but the learner was validated on 24 tasks: it needs 99" in capsys.readouterr().err
    assert not (tmp_path / "found.csv").exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--coverage=0.9999"])
    assert "give a coverage of at most 0.999" in capsys.readouterr().err


def test_the_default_coverage_warns_and_leaves_the_columns_empty(text, files, tmp_path):
    predictor = FewShotPredictor.from_checkpoint(text)
    few = predictor.learner.validation_scores
    few = few._replace(tasks=8, quantiles=[*few.quantiles[:889], *[math.inf] * 112])
    predictor.learner.validation_scores = few
    with pytest.warns(UserWarning, match="coverage=0.9, but the learner was validated on 8 tasks: it needs 9"):
        found = predictor.adapt(files / "labelled.csv").predict(files / "new.csv")
    assert found["prediction_set"].null_count() == len(found)
    assert found["prediction"].null_count() == 0


def test_without_validation_there_are_no_sets(text, files):
    predictor = FewShotPredictor.from_checkpoint(text)
    predictor.learner.validation_scores = None
    found = predictor.adapt(files / "labelled.csv").predict(files / "new.csv", coverage=0.99)
    assert found["prediction_set"].null_count() == len(found)


def test_intervals_that_need_more_tasks_are_empty_and_the_deviation_is_not(tmp_path):
    checkpoint = table_checkpoint(tmp_path)
    visits(1, 12, seed=3).write_csv(tmp_path / "rows.csv")
    predictor = FewShotPredictor.from_checkpoint(checkpoint)
    scores = predictor.learner.validation_scores
    predictor.learner.validation_scores = scores._replace(
        tasks=1, quantiles=[*scores.quantiles[:501], *[math.inf] * 500]
    )
    with pytest.warns(UserWarning, match="it needs 9. Intervals and sets are empty"):
        found = predictor.adapt(tmp_path / "rows.csv").predict(tmp_path / "rows.csv")
    assert found["lower_90"].null_count() == len(found)
    assert torch.isfinite(found["std"].to_torch()).all()
