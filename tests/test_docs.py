"""The documentation: Sphinx builds it without a warning, and writes to no folder but its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("sphinx", reason="the extra `docs` is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkout's files in a folder of their own, and what Sphinx makes of them without running code."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("_build", "gallery", "generated"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks", "configs", "examples", "results", "tools"):
        (root / name).symlink_to(ROOT / name)
    home = root / "home"
    home.mkdir()
    without_code = ["-D", "plot_gallery=0", "-D", "nb_execution_mode=off"]
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", *without_code, "docs", "html"]
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(home), "PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(root)}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    return root, run


def test_no_warning(built):
    _, run = built
    assert (run.returncode, run.stderr) == (0, "")


def test_nothing_is_written_to_the_home(built):
    root, _ = built
    assert not list((root / "home").iterdir())


@pytest.mark.parametrize("name", ["MAML", "ProtoNet", "Episode", "TabularTasksDataModule", "FewShotPredictor"])
def test_public_classes_are_documented_under_the_name_that_users_import(built, name):
    root, _ = built
    pages = (root / "html" / "reference" / "generated").glob(f"*.{name}.html")
    assert any(f'id="lightning_meta.{name}"' in page.read_text() for page in pages)


def test_names_in_code_font_are_links_in_pages_and_docstrings(built):
    root, _ = built
    page = (root / "html" / "tutorials" / "your-own-data.html").read_text()
    assert 'lightning_meta.data.TabularTasksDataModule.html#lightning_meta.TabularTasksDataModule"' in page
    docstring = (root / "html" / "reference" / "generated" / "lightning_meta.learners.GradientLearner.html").read_text()
    assert 'lightning_meta.inner.UpdateRule.html#lightning_meta.inner.UpdateRule"' in docstring
