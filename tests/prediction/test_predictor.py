"""Predictions from files are those of the learner on tensors prepared by hand."""

import hashlib

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from lightning_meta import ABML, MAML, MLP, BayesianMAML, FewShotPredictor, ProtoNet, TabularTasksDataModule
from tests.prediction.trained import (
    class_table_checkpoint,
    image_checkpoint,
    picture,
    sentences,
    table_checkpoint,
    text_checkpoint,
    trainer,
    visits,
)


def by_hand(train: pl.DataFrame, rows: pl.DataFrame) -> torch.Tensor:
    """The features of rows: size standardized by the training patients, and colors as zeros and ones."""
    size = (rows["size"].to_numpy() - train["size"].mean()) / train["size"].std(ddof=0)
    colors = [rows["color"].to_numpy() == color for color in ("blue", "red")]
    return torch.tensor(np.stack([size, *colors], axis=1), dtype=torch.float32)


def training_rows() -> pl.DataFrame:
    """The rows of the patients that were trained on: all but the first 3 and 3 by a digest of their name."""
    order = sorted((f"p{i}" for i in range(20)), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return visits().filter(pl.col("patient").is_in(order[6:]))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return table_checkpoint(tmp_path_factory.mktemp("table"))


def test_a_regression_is_that_of_the_learner_in_units_of_the_target(table, tmp_path):
    new = visits(patients=2, rows=30, seed=1)
    support, query = new.filter(pl.col("patient") == "p0")[:9], new.filter(pl.col("patient") == "p0")[9:]
    support.write_csv(tmp_path / "labelled.csv")
    query.drop("pain").write_csv(tmp_path / "new.csv")
    predictor = FewShotPredictor.from_checkpoint(table)
    found = predictor.adapt(tmp_path / "labelled.csv").predict(tmp_path / "new.csv")

    train = training_rows()
    mean, std = train["pain"].mean(), train["pain"].std(ddof=0)
    learner = MAML.load_from_checkpoint(table)
    y = torch.tensor((support["pain"].to_numpy() - mean) / std, dtype=torch.float32)[:, None]
    expected = learner.adapt(by_hand(train, support), y)(by_hand(train, query))[:, 0] * std + mean
    np.testing.assert_allclose(found["mean"], expected, rtol=1e-4)
    assert found.columns[: len(query.columns) - 1] == query.drop("pain").columns
    assert found.drop(found.columns[-5:]).equals(query.drop("pain"))


def test_many_tasks_in_one_file_are_those_of_single_files(table, tmp_path):
    new = visits(patients=3, rows=20, seed=2).sample(fraction=1.0, shuffle=True, seed=0)
    labelled = new.group_by("patient", maintain_order=True).head(6)
    rest = new.join(labelled, on=["patient", "size"], how="anti")
    labelled.write_parquet(tmp_path / "labelled.parquet")
    rest.write_parquet(tmp_path / "new.parquet")
    predictor = FewShotPredictor.from_checkpoint(table)
    tasks = predictor.adapt(tmp_path / "labelled.parquet")
    together = tasks.predict(tmp_path / "new.parquet")
    assert set(tasks) == {"p0", "p1", "p2"}
    assert together[rest.columns].equals(rest)
    for patient in tasks:
        labelled.filter(pl.col("patient") == patient).drop("patient").write_csv(tmp_path / "one.csv")
        rest.filter(pl.col("patient") == patient).drop("patient").write_csv(tmp_path / "rest.csv")
        alone = predictor.adapt(tmp_path / "one.csv").predict(tmp_path / "rest.csv")
        np.testing.assert_allclose(together.filter(pl.col("patient") == patient)["mean"], alone["mean"], rtol=1e-5)


def test_intervals_without_a_noise_model_come_from_validation_errors(table, tmp_path):
    visits(1, 12, seed=3).write_csv(tmp_path / "rows.csv")
    predictor = FewShotPredictor.from_checkpoint(table)
    found = predictor.adapt(tmp_path / "rows.csv").predict(tmp_path / "rows.csv", coverage=0.8)
    scores, std = predictor.learner.validation_scores, predictor.preparation.targets.std
    np.testing.assert_allclose(found["upper_80"] - found["mean"], scores.quantile(0.8) * std, rtol=1e-5)
    np.testing.assert_allclose(found["mean"] - found["lower_80"], scores.quantile(0.8) * std, rtol=1e-5)
    np.testing.assert_allclose(found["std"], scores.root_mean_square * std, rtol=1e-5)
    assert "aleatoric" not in found.columns


def test_a_bayesian_regression_has_intervals_from_scores_and_parts_of_the_variance(tmp_path):
    checkpoint = table_checkpoint(tmp_path, ABML, normalize_steps=True)
    visits(1, 12, seed=3).write_csv(tmp_path / "rows.csv")
    predictor = FewShotPredictor.from_checkpoint(checkpoint)
    tasks = predictor.adapt(tmp_path / "rows.csv")
    found = tasks.predict(tmp_path / "rows.csv")
    assert found.columns[-7:] == ["prediction", "mean", "std", "lower_90", "upper_90", "aleatoric", "epistemic"]
    np.testing.assert_allclose(found["std"] ** 2, found["aleatoric"] + found["epistemic"], rtol=1e-4)
    assert (found["lower_90"] < found["mean"]).all()
    assert (found["mean"] < found["upper_90"]).all()
    reach = predictor.learner.validation_scores.quantile(0.9) * found["std"]
    np.testing.assert_allclose(found["upper_90"] - found["mean"], reach, rtol=1e-4)
    with pytest.warns(UserWarning, match="Intervals are of the learner's own predictive distribution"):
        wider = tasks.predict(tmp_path / "rows.csv", coverage=0.99)
    assert (wider["upper_99"] > wider["mean"]).all()
    own = predictor.adapt(tmp_path / "rows.csv", steps=1).predict(tmp_path / "rows.csv", coverage=0.95)
    assert (own["upper_95"] < wider["upper_99"]).all()


def test_classes_of_a_table_are_those_of_the_training(tmp_path):
    checkpoint = class_table_checkpoint(tmp_path)
    rows = visits(2, 40, seed=4)
    rows.write_csv(tmp_path / "rows.csv")
    found = FewShotPredictor.from_checkpoint(checkpoint).adapt(tmp_path / "rows.csv").predict(tmp_path / "rows.csv")
    assert found.columns[-4:] == ["prediction", "probability_no", "probability_yes", "prediction_set"]
    np.testing.assert_allclose(found["probability_no"] + found["probability_yes"], 1, rtol=1e-6)
    assert ((found["probability_yes"] > 0.5) == (found["prediction"] == "yes")).all()
    assert (found["prediction"] == rows["sick"]).mean() > 0.8


@pytest.mark.parametrize("intents", [2, 5])
def test_texts_have_the_classes_of_their_support(tmp_path, intents):
    checkpoint = text_checkpoint(tmp_path)
    rows = sentences(intents, each=10)
    labelled = rows.group_by("intent", maintain_order=True).head(3)
    labelled.write_csv(tmp_path / "labelled.csv")
    rows.drop("intent").write_ndjson(tmp_path / "new.jsonl")
    tasks = FewShotPredictor.from_checkpoint(checkpoint).adapt(tmp_path / "labelled.csv")
    found = tasks.predict(tmp_path / "new.jsonl")
    assert found.columns[2:] == [*(f"probability_intent {i:02}" for i in range(intents)), "prediction_set"]
    assert (found["prediction"] == rows["intent"]).mean() > 0.9


def test_a_model_with_more_outputs_than_classes_predicts_these_alone(tmp_path):
    checkpoint = text_checkpoint(tmp_path, MAML, outputs=3)
    sentences(2, each=5).write_csv(tmp_path / "two.csv")
    sentences(4, each=5).write_csv(tmp_path / "four.csv")
    predictor = FewShotPredictor.from_checkpoint(checkpoint)
    found = predictor.adapt(tmp_path / "two.csv").predict(tmp_path / "two.csv")
    probabilities = found["probability_intent 00"] + found["probability_intent 01"]
    np.testing.assert_allclose(probabilities, 1, rtol=1e-6)
    with pytest.raises(ValueError, match="3 outputs.*ProtoMAML, ProtoNet or R2D2"):
        predictor.adapt(tmp_path / "four.csv")


def test_pictures_in_folders(tmp_path):
    checkpoint = image_checkpoint(tmp_path)
    for hue in (10, 100, 180):
        picture(tmp_path / "labelled" / f"class {hue}" / "first.png", hue, 1)
        picture(tmp_path / "labelled" / f"class {hue}" / "second.jpg", hue, 2)
        picture(tmp_path / "new" / f"{hue}.png", hue, 3)
    predictor = FewShotPredictor.from_checkpoint(checkpoint)
    found = predictor.adapt(tmp_path / "labelled").predict(tmp_path / "new")
    assert found["file"].str.extract(r"(\d+)\.png$", 1).to_list() == ["10", "100", "180"]
    assert found["prediction"].to_list() == ["class 10", "class 100", "class 180"]


def test_adapted_weights_of_a_task_from_a_file(table, tmp_path):
    visits(1, 12, seed=3).write_csv(tmp_path / "rows.csv")
    predictor = FewShotPredictor.from_checkpoint(table)
    task = predictor.adapt(tmp_path / "rows.csv")["p0"]
    model = predictor.learner.model
    x = torch.randn(4, 3)
    expected = task(x)
    model.load_state_dict(task.state_dict())
    torch.testing.assert_close(model(x), expected)
    assert isinstance(model, nn.Module)


def test_draws_do_not_depend_on_other_tasks(tmp_path):
    checkpoint = table_checkpoint(tmp_path, ABML, normalize_steps=True)
    rows = visits(2, 12, seed=3)
    rows.write_csv(tmp_path / "both.csv")
    rows.sort("patient", descending=True, maintain_order=True).write_csv(tmp_path / "other_order.csv")
    predictor = FewShotPredictor.from_checkpoint(checkpoint)
    first = predictor.adapt(tmp_path / "both.csv").predict(tmp_path / "both.csv").sort("size")
    second = predictor.adapt(tmp_path / "other_order.csv").predict(tmp_path / "other_order.csv").sort("size")
    np.testing.assert_allclose(first["mean"], second["mean"], rtol=1e-5)


def test_uncertainties_are_about_the_classes_that_are_reported(tmp_path):
    checkpoint = text_checkpoint(tmp_path, BayesianMAML, outputs=3)
    sentences(2, each=5).write_csv(tmp_path / "two.csv")
    found = FewShotPredictor.from_checkpoint(checkpoint).adapt(tmp_path / "two.csv").predict(tmp_path / "two.csv")
    total = found["aleatoric"] + found["epistemic"]
    assert found["aleatoric"].max() <= np.log(2) + 1e-6
    shares = found.select("^probability_.*$").to_numpy()
    entropy = -(shares * np.log(shares)).sum(1)
    assert (total.to_numpy() >= entropy - 0.05).all()  # equal but for the correction for the number of draws


def test_classes_that_the_support_lacks_have_probability_zero(tmp_path):
    rows = visits(20, 12)
    rows = rows.with_columns(grade=pl.Series(np.tile(["a", "b", "c"], len(rows) // 3)))
    rows.write_csv(tmp_path / "visits.csv")
    data = TabularTasksDataModule(
        tmp_path / "visits.csv",
        "patient",
        "grade",
        ["size"],
        shots=6,
        task="classification",
        train_tasks=16,
        val_tasks=10,
    )
    trained = trainer(tmp_path)
    trained.fit(ProtoNet(MLP(1, 4, hidden=[4])), data)
    predictor = FewShotPredictor.from_checkpoint(trained.checkpoint_callback.best_model_path)
    rows.filter(pl.col("grade") != "c")[:8].write_csv(tmp_path / "two.csv")
    found = predictor.adapt(tmp_path / "two.csv").predict(tmp_path / "two.csv")
    assert found["probability_c"].unique().to_list() == [0.0]
    np.testing.assert_allclose(found["probability_a"] + found["probability_b"], 1.0, rtol=1e-6)


def test_other_steps_than_validation_took_have_no_interval(table, tmp_path):
    visits(1, 12, seed=3).write_csv(tmp_path / "rows.csv")
    found = FewShotPredictor.from_checkpoint(table).adapt(tmp_path / "rows.csv", steps=7).predict(tmp_path / "rows.csv")
    assert found["lower_90"].null_count() == found["std"].null_count() == len(found)
    assert found["mean"].null_count() == 0


def test_columns_are_written_as_the_query_has_them(table, tmp_path):
    visits(1, 12, seed=3).write_csv(tmp_path / "rows.csv")
    (tmp_path / "new.csv").write_text("id,patient,size,color,note,price\n007,p0,0.5,red,NA,1.10\n010,p0,1.5,blue,x,2\n")
    found = FewShotPredictor.from_checkpoint(table).adapt(tmp_path / "rows.csv").predict(tmp_path / "new.csv")
    assert found["id"].to_list() == ["007", "010"]
    assert found["note"].to_list() == ["NA", "x"]
    assert found["price"].to_list() == ["1.10", "2"]
    assert found["size"].to_list() == [0.5, 1.5]
