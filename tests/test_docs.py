"""The documentation: Sphinx builds it without a warning, and writes to no folder but its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_meta
from lightning_meta import cli
from lightning_meta.cli.analyze.command import ANALYSES

ROOT = Path(__file__).parent.parent
pytest.importorskip("sphinx", reason="the extra `docs` is not installed")


def build(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build it from a checkout's files in a folder of their own, which has the user's home too."""
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("_build", "gallery", "generated"))
    for name in ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks", "configs", "examples", "results", "tools"):
        (root / name).symlink_to(ROOT / name)
    (root / "home").mkdir()
    command = [sys.executable, "-m", "sphinx", "-q", "-n", "-W", "--keep-going", *options, "docs", "html"]
    environment = {
        "PYTHONPATH": str(ROOT),
        "HOME": str(root / "home"),
        "PATH": "/usr/bin:/bin",
        "MPLCONFIGDIR": str(root),
    }
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What Sphinx makes of the documentation without running its code, and without the theme's slow navigation."""
    root = tmp_path_factory.mktemp("checkout")
    return root, build(root, "-D", "plot_gallery=0", "-D", "nb_execution_mode=off", "-D", "html_theme=basic")


def test_no_warning(built):
    _, run = built
    assert (run.returncode, run.stderr) == (0, "")


def test_nothing_is_written_to_the_home(built):
    root, _ = built
    assert not list((root / "home").iterdir())


def test_public_names_are_documented_as_users_import_them(built):
    root, _ = built
    pages = [page.read_text() for page in (root / "html" / "reference" / "generated").glob("*.html")]
    documented = {name for page in pages for name in re.findall(r'id="lightning_meta\.(\w+)"', page)}
    assert documented >= set(lightning_meta.__all__) - {"MetaLearner", "__version__"}


def test_commands_are_documented():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text()
    assert {"fit", *cli._COMMANDS} == set(re.findall(r"{command-help} (\w+)", page))
    assert set(ANALYSES) == set(re.findall(r"{command-help} analyze (\w+)", page))


def test_a_docstring_that_names_nothing_is_an_error(tmp_path):
    extensions = ROOT / "docs" / "_extensions"
    configuration = f"import sys\nsys.path.insert(0, {str(extensions)!r})\nextensions = ['names']\n"
    (tmp_path / "conf.py").write_text(configuration + "default_role = 'py:obj'\nnitpicky = True\n")
    text = "`TaskLearner.adapt`, `torch.nn.Module`, `inner_steps` and `no_such_name`."
    (tmp_path / "index.rst").write_text(f"Title\n=====\n\n.. py:currentmodule:: lightning_meta\n\n{text}\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-b", "dummy", str(tmp_path), str(tmp_path / "out")]
    run = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert re.findall(r"target not found: (\w+)", run.stderr) == ["no_such_name"]


def test_names_in_code_font_are_links_in_pages_and_docstrings(built):
    root, _ = built
    page = (root / "html" / "tutorials" / "your-own-data.html").read_text()
    assert 'lightning_meta.data.TabularTasksDataModule.html#lightning_meta.TabularTasksDataModule"' in page
    docstring = (root / "html" / "reference" / "generated" / "lightning_meta.learners.GradientLearner.html").read_text()
    assert 'lightning_meta.inner.UpdateRule.html#lightning_meta.inner.UpdateRule"' in docstring


@pytest.mark.slow
def test_with_all_code(tmp_path):
    run = build(tmp_path)
    assert run.returncode == 0, run.stderr
    gallery = tmp_path / "html" / "gallery"
    assert "12 support points" in (gallery / "posterior_tightening.html").read_text()
    assert "upper_90" in (gallery / "predict_a_table.html").read_text()
    assert (
        "inside of the 90 % interval"
        in (tmp_path / "html" / "tutorials" / "from-checkpoint-to-predictions.html").read_text()
    )
    assert not list((tmp_path / "home").iterdir())
