"""The examples in docstrings do what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lightning_meta

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(lightning_meta.__path__, "lightning_meta.")
    if not module.name.endswith("__main__")
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    results = [doctest.DocTestRunner().run(example) for example in FINDER.find(module, name) if example.examples]
    assert all(result.failed == 0 for result in results)


def test_the_main_classes_have_examples():
    for name in ("MAML", "ProtoNet"):
        assert ">>>" in getattr(lightning_meta, name).__doc__
