"""The README and the pages of docs/: their code runs, what they link to exists, the table names every algorithm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import lightning_meta.algorithms

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
GENERATED = (DOCS / "_build", DOCS / "gallery", DOCS / "reference" / "generated")
PAGES = [README, *sorted(page for page in DOCS.rglob("*.md") if not set(GENERATED) & set(page.parents))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).with_suffix("").as_posix()


def python_blocks(page: Path) -> list[str]:
    """The code of a page, also of those that are notebooks, whose cells may begin with options."""
    fenced = r"^```(?:python|\{code-cell\}[^\n]*)\n((?::[^\n]*\n)*)(.*?)^```"
    return [code for _, code in re.findall(fenced, page.read_text(), re.MULTILINE | re.DOTALL)]


def tables(page: Path) -> list[list[list[str]]]:
    """The cells of each row of each table; a blank line ends a table."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.MULTILINE)
    return [[row[1:-1].split("|") for row in block.splitlines()] for block in blocks]


class ShortTrainer(L.Trainer):
    def __init__(self, **options: Any) -> None:
        short = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "accelerator": "cpu"}
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        super().__init__(**options | short | quiet)


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name_of)
def test_python_runs(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(L, "Trainer", ShortTrainer)
    names: dict[str, Any] = {"__name__": "example"}
    for block in python_blocks(page):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_configurations_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#]+)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    named = set(re.findall(r"configs/\w+\.yaml", text)) - {"configs/NAME.yaml"}
    missing += [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_whole(page):
    rows = sum(line.startswith("|") for line in page.read_text().splitlines())
    assert rows == sum(len(table) for table in tables(page))
    for head, rule, *body in tables(page):
        assert set("".join(rule)) <= set(":-")
        assert body
        assert {len(row) for row in (rule, *body)} == {len(head)}
    prose = re.sub(r"```(?!\{include\}).*?```", "", page.read_text(), flags=re.DOTALL)
    assert len(re.findall(r"^(?:# |```\{include\})", prose, re.MULTILINE)) == 1


def test_the_table_names_every_algorithm_and_configuration():
    (table,) = tables(README)
    learners = {name for row in table[2:] for name in re.findall(r"`(\w+)", row[0])}
    assert learners == set(lightning_meta.algorithms.__all__)
    configurations = [name for row in table[2:] for name in re.findall(r"`(\w+)`", row[3])]
    assert sorted(configurations) == sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_the_citation_has_the_version():
    assert f"\nversion: {lightning_meta.__version__}\n" in (ROOT / "CITATION.cff").read_text()
