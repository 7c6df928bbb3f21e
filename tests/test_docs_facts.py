"""What the documentation says of learners, found by running them, beside what the tests know of them."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import pytest

from lightning_meta import algorithms
from tests.registry import BY_NAME

DOCS = Path(__file__).parent.parent / "docs"
OF_REGISTRY = {"MAML(first_order=True)": "FOMAML"}
LEARNERS = BY_NAME.keys() - {"DKT-classes"}  # DKT on other data


@pytest.fixture(scope="module")
def facts():
    sys.path.insert(0, str(DOCS / "_extensions"))
    import facts

    yield facts
    sys.path.remove(str(DOCS / "_extensions"))


def test_tables_have_all_learners(facts):
    assert {OF_REGISTRY.get(variant.name, variant.name) for variant in facts.VARIANTS} == LEARNERS


def test_each_dash_is_expected(facts):
    transfer = {"Baseline", "BaselinePlusPlus", "SimpleShot"}
    processes = {"CNP", "AttentiveNP", "TNP"}
    classifiers = {"ProtoNet", "MatchingNet", "RelationNet", "ProtoMAML", "MetaOptNet", "VERSA", *transfer}
    any_ways = classifiers | {"R2D2", "DKT"}
    without_steps = (any_ways - {"ProtoMAML", "Baseline", "BaselinePlusPlus"}) | processes | {"COMLN", "PACOH"}
    distributions = {"BayesianMAML", "ABML", "AmortizedMAML", "PLATIPUS", "VERSA", "DKT", "PACOH", *processes}
    points = LEARNERS - distributions
    expected = {
        "regression": classifiers,
        "classification": {"PACOH"},
        "any number of ways": LEARNERS - any_ways,
        "unequal sizes, padded": {"AmortizedMAML", "RelationNet"},
        "gradient steps": without_steps,
        "update rule": without_steps,
        "part of the model": without_steps | transfer | {"ABML", "AmortizedMAML", "ANIL", "BOIL", "Reptile", "CAVIA"},
        "first order": LEARNERS - without_steps - transfer - {"FOMAML", "Reptile", "AmortizedMAML"},
        "weights": any_ways | distributions,
        "classes: epistemic": points | {"CNP", "TNP", "PACOH"},
        "regression: noise": points | {"VERSA"},
        "regression: epistemic": points | {"CNP", "TNP", "VERSA"},
    }
    found = {
        column: {OF_REGISTRY.get(one.name, one.name) for one in facts.VARIANTS if not question(one)}
        for table in facts.TABLES.values()
        for column, question in table.items()
    }
    assert found == expected


@pytest.mark.parametrize("error", [ValueError("shapes differ"), TypeError("no len()"), RuntimeError("is refused")])
def test_a_bug_is_no_dash(facts, error):
    log = logging.getLogger("lightning.pytorch")
    level = log.level

    def crash():
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        facts._succeeds(crash, "is refused")
    assert log.level == level


def test_a_refusal_is_a_dash(facts):
    def refuse():
        raise ValueError("more than one class is refused: give one")

    assert not facts._succeeds(refuse, "is refused")
    assert facts._succeeds(lambda: None, "is refused")


def test_all_that_is_logged_is_explained(facts):
    explained = set(re.findall(r"`(?:train|val)/(\w+)`", (DOCS / "reference" / "logged-metrics.md").read_text()))
    explained |= {"mse_pre"}  # as `val/acc_pre`
    for variant in facts.VARIANTS:
        kinds = {facts.takes_real_targets(variant), not facts.takes_classes(variant)}
        logged = [facts.logged(variant, real) for real in kinds]
        assert all("train/loss" in names for names in logged)
        for name in {name for names in logged for name in names}:
            assert name.partition("/")[2] in explained


def test_each_algorithm_has_a_page_with_what_it_logs_and_its_results():
    pages = [page.read_text() for page in (DOCS / "explanation" / "algorithms").glob("*.md")]
    for directive in ("logged", "measured"):
        shown = {name for page in pages for name in re.findall(rf"{{{directive}}} (\w+)", page)}
        assert shown == set(algorithms.__all__)
    assert sum("{differences}" in page for page in pages) == len(algorithms.__all__) - 1  # ANIL and BOIL share one
