"""What the documentation says of learners, found by running them, beside what the tests know of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lightning_meta import algorithms
from tests.registry import BY_NAME

DOCS = Path(__file__).parent.parent / "docs"
OF_REGISTRY = {"MAML(first_order=True)": "FOMAML"}


@pytest.fixture(scope="module")
def facts():
    sys.path.insert(0, str(DOCS / "_extensions"))
    import facts

    yield facts
    sys.path.remove(str(DOCS / "_extensions"))


def test_tables_have_all_learners(facts):
    assert {OF_REGISTRY.get(variant.name, variant.name) for variant in facts.VARIANTS} == BY_NAME.keys()


def test_cells_agree_with_the_registry(facts):
    for variant in facts.VARIANTS:
        entry = BY_NAME[OF_REGISTRY.get(variant.name, variant.name)]
        assert facts.takes_classes(variant)
        assert facts.takes_real_targets(variant) != entry.classes_only
        assert facts.takes_any_ways(variant) == entry.classes_only
        assert facts.takes_inner_steps(variant) == facts.takes_update_rule(variant) == entry.takes_steps
        assert facts.is_uncertain_of_classes(variant) == entry.is_bayesian
        assert facts.has_noise_model(variant) == facts.is_uncertain_of_targets(variant) == entry.is_bayesian


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("is_first_order", {"FOMAML", "Reptile", "ProtoNet", "AmortizedMAML"}),
        ("takes_part", {"MAML", "FOMAML", "MetaSGD", "ImplicitMAML", "ProtoMAML", "BayesianMAML"}),
        ("has_weights", {"MAML", "FOMAML", "ANIL", "BOIL", "MetaSGD", "Reptile", "ImplicitMAML"}),
        ("keeps_padding", BY_NAME.keys() - {"AmortizedMAML"}),
    ],
)
def test_cells_by_algorithm(facts, question, answer):
    yes = {variant.name for variant in facts.VARIANTS if getattr(facts, question)(variant)}
    assert {OF_REGISTRY.get(name, name) for name in yes} == answer


def test_all_that_is_logged_is_explained(facts):
    explained = set(re.findall(r"`(?:train|val)/(\w+)`", (DOCS / "reference" / "logged-metrics.md").read_text()))
    explained |= {"mse_pre"}  # as `val/acc_pre`
    for variant in facts.VARIANTS:
        real = facts.takes_real_targets(variant)
        assert "train/loss" in facts.logged(variant, real)
        for name in facts.logged(variant, real) + facts.logged(variant, False):
            assert name.partition("/")[2] in explained


def test_each_algorithm_has_a_page_with_what_it_logs_and_its_results():
    pages = [page.read_text() for page in (DOCS / "explanation" / "algorithms").glob("*.md")]
    for directive in ("logged", "measured"):
        shown = {name for page in pages for name in re.findall(rf"{{{directive}}} (\w+)", page)}
        assert shown == set(algorithms.__all__) - {"BOIL"}  # which shares ANIL's page, and logs what ANIL does
    assert sum("{differences}" in page for page in pages) == len(algorithms.__all__) - 1
