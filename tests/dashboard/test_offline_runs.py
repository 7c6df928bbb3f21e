"""An offline run of every learner, read back: all keys, tables, pictures, summaries."""

from __future__ import annotations

import math
import re

import pytest
import torch
from PIL import Image

from lightning_meta.dashboard import ANY_LEARNER, kind_of, sections_of
from tests.dashboard.runs import run_offline
from tests.offline_runs import OfflineRun, without_connection
from tests.registry import BY_NAME, LEARNERS, every

SIZES = {"tasks_per_batch": 2, "train_tasks": 4, "val_tasks": 4, "test_tasks": 4}
STEPS = 2
TESTED = {"MAML", "ABML", "ProtoNet"}  # of which the quick tests are, and tests are read too
PICTURES = ["adaptation", "tasks", "calibration", "difficulty", "learned_rates"]


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """Weights & Biases without a connection, which keeps its files in a folder of the tests."""
    with without_connection(tmp_path_factory.mktemp("wandb")):
        yield


class Runs(dict):
    """Runs by learner, made when they are first asked for."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __missing__(self, name):
        torch.manual_seed(0)
        learner, data = BY_NAME[name].learner(eval_inner_steps=STEPS), BY_NAME[name].data(**SIZES)
        self[name] = run_offline(self.folder / name, learner, data, name in TESTED)
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, offline):
    return Runs(tmp_path_factory.mktemp("runs"))


def stages(entry):
    return ("val", "test") if entry.name in TESTED else ("val",)


def takes_steps(entry):
    return entry.takes_steps


@every(quick=TESTED)
def test_every_metric_is_logged(runs, entry):
    run, metric = runs[entry.name], entry.metric
    expected = {"train/loss", f"train/{metric}", "train/meta_gradient_norm", "trainer/global_step", "epoch"}
    for stage in stages(entry):
        expected |= {f"{stage}/{name}" for name in ("loss", "loss_ci95", metric, f"{metric}_ci95")}
    assert expected <= run.keys


@every(takes_steps, quick=TESTED)
def test_the_metric_and_the_gradient_are_logged_by_inner_step(runs, entry):
    run = runs[entry.name]
    for stage in stages(entry):
        by_step = [run.last(f"{stage}_episodes/{entry.metric}_step_{step}") for step in range(STEPS + 1)]
        assert all(map(math.isfinite, by_step))
        assert run.last(f"{stage}_episodes/inner_gradient_norm_step_0") > 0


@every(quick=TESTED)
def test_pictures_are_drawn_of_all_that_a_learner_has(runs, entry):
    run = runs[entry.name]
    expected = {"difficulty"} | ({"adaptation"} if entry.takes_steps else set())
    expected |= set() if entry.classes_only else {"tasks"}
    expected |= {"calibration"} if entry.classes_only or entry.has_noise else set()
    expected |= {"learned_rates"} if entry.name == "MetaSGD" else set()
    for stage in stages(entry):
        drawn = {name for name in PICTURES if f"{stage}_episodes/{name}" in run.keys}
        assert drawn == expected
        for name in drawn:
            with Image.open(run.files / run.last(f"{stage}_episodes/{name}")["path"]) as picture:
                assert len(picture.convert("L").getcolors()) > 10, name


@every(quick=TESTED)
def test_tables_hold_examples_and_tasks(runs, entry):
    run = runs[entry.name]
    for stage in stages(entry):
        examples = run.table(f"{stage}_episodes/examples")
        rows = [dict(zip(examples["columns"], row, strict=True)) for row in examples["data"]]
        assert {row["task"] for row in rows} == {0, 1}
        assert {row["set"] for row in rows} == {"support", "query"}
        assert len(rows) == 2 * (4 + 4)
        for row in rows:
            assert row["truth"] is not None
            assert (row["prediction"] is None) == (row["set"] == "support")
        knows = entry.classes_only or entry.has_noise
        assert all((row["uncertainty"] is not None) == knows for row in rows if row["set"] == "query")
        assert all((row["epistemic"] is not None) == entry.is_bayesian for row in rows if row["set"] == "query")
        tasks = run.table(f"{stage}_episodes/per_task")
        assert [row[0] for row in tasks["data"]] == [0, 1, 2, 3]
        values = [row[tasks["columns"].index(entry.metric)] for row in tasks["data"]]
        assert sum(values) / 4 == pytest.approx(run.last(f"{stage}/{entry.metric}"), rel=1e-4)


@every(quick=TESTED)
def test_the_axis_is_the_training_step_and_summaries_keep_the_best(runs, entry):
    run = runs[entry.name]
    assert run.metrics["*"] == ("trainer/global_step", set())
    for stage in ("train", "val", "test"):
        assert run.metrics[f"{stage}/acc"] == ("trainer/global_step", {"max"})
        for name in ("loss", "mse", "nll", "ece"):
            assert run.metrics[f"{stage}/{name}"] == ("trainer/global_step", {"min"})
    logged = [row[f"val/{entry.metric}"] for row in run.history if f"val/{entry.metric}" in row]
    best = {"max": max(logged)} if entry.metric == "acc" else {"min": min(logged)}
    assert run.summary[f"val/{entry.metric}"] == pytest.approx(best)
    assert all("trainer/global_step" in row for row in run.history)


@every(quick=TESTED)
def test_the_histogram_counts_all_tasks(runs, entry):
    counts = runs[entry.name].last("val_episodes/difficulty_histogram")["values"]
    assert sum(counts) == SIZES["val_tasks"]


@every(quick=TESTED)
def test_tables_are_artifacts_of_the_run(runs, entry):
    run: OfflineRun = runs[entry.name]
    tables = [name for name, (kind, _) in run.artifacts.items() if kind == "run_table"]
    for stage in stages(entry):
        assert any(f"{stage}_episodesexamples" in name for name in tables)
        assert any(f"{stage}_episodesper_task" in name for name in tables)


def test_learned_rates_are_logged_by_parameter(runs):
    run = runs["MetaSGD"]
    rates = {key.removeprefix("learned_rates/"): run.last(key) for key in run.keys if key.startswith("learned_rates/")}
    assert set(rates) == {"layers.0.weight", "layers.0.bias", "layers.2.weight", "layers.2.bias"}
    assert all(0 < abs(rate - 0.01) < 0.01 for rate in rates.values())


def matching(panel, keys):
    """The keys of a run that a panel shows."""
    if panel.pattern:
        return {key for key in keys if re.fullmatch(panel.keys[0], key)}
    return set(panel.keys) & keys


@every(quick=TESTED)
def test_panels_for_a_learner_name_only_keys_that_its_runs_log(runs, entry):
    kind = kind_of(entry.learner(eval_inner_steps=STEPS), pictures=False)
    shown = set()
    for section in sections_of([kind]):
        for panel in section.panels:
            found = matching(panel, runs[entry.name].keys)
            assert found, f"{panel} of {section.name}"
            assert panel.pattern or found == set(panel.keys), f"{panel} of {section.name}"
            shown |= found
    run = runs[entry.name]
    left = {key for key in run.keys if key.startswith(("train/", "val_episodes/", "learned_rates/"))} - shown
    assert left <= {"val_episodes/difficulty_histogram"}


def test_panels_for_any_learner_name_only_keys_that_some_run_logs(runs):
    quick = [entry.name for entry in LEARNERS if not entry.costly_tests_are_slow]
    keys = set().union(*(runs[name].keys for name in [*quick, "MetaSGD"]))  # which alone has learned rates
    for section in sections_of(ANY_LEARNER):
        for panel in section.panels:
            assert matching(panel, keys), panel
            assert panel.pattern or set(panel.keys) <= keys, panel


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AmortizedMAML", {"eval_inner_steps": 1}),
        ("ImplicitMAML", {"inner_solver": "hessian_free"}),
        ("BayesianMAML", {"meta_loss": "nll"}),
        ("MAML", {"learned_rates": "tensor_step", "inner_steps": 2}),
    ],
    ids=str,
)
def test_panels_follow_the_options_of_a_learner(name, options, tmp_path):
    entry = next(entry for entry in LEARNERS if entry.name == name)
    run = run_offline(tmp_path, entry.learner(**options), entry.data(**SIZES), tests=False)
    for section in sections_of([kind_of(entry.learner(**options), pictures=False)]):
        for panel in section.panels:
            assert matching(panel, run.keys), panel
    if "learned_rates" in options:
        assert {"learned_rates/layers.0.weight_step_0", "learned_rates/layers.0.weight_step_1"} <= run.keys
