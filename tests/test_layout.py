"""The structure of package and tests: imports point down one list of folders, and files stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_meta

PACKAGE = Path(lightning_meta.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# From the top down: a file may import from its own folder and from those further down.
FOLDERS = (
    *("__main__", "cli", "callbacks", "analysis", "algorithms", "learners", "execution", "data", "checkpoints"),
    *("inner", "metrics", "models", "likelihoods", "episodes", "arguments", "version"),
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, for type checkers too."""
    names = {name_of(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module in names:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else node.module


def folder_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", [f for f in FILES if f.parent != PACKAGE or f.stem != "__init__"], ids=name_of)
def test_imports_point_down(path):
    own = FOLDERS.index(folder_of(name_of(path)))
    for module in imports_of(path):
        assert module != "lightning_meta", f"{path} imports the package that imports it"
        assert FOLDERS.index(folder_of(module)) >= own, f"{path} imports {module} from a folder above its own"


def test_no_file_imports_itself_by_way_of_others():
    graph = {name_of(path): set(imports_of(path)) for path in FILES}
    while leaves := {name for name, imported in graph.items() if not imported & graph.keys()}:
        graph = {name: imported for name, imported in graph.items() if name not in leaves}
    assert not graph, f"these files import each other in a circle, or files that do: {sorted(graph)}"


@pytest.mark.parametrize("path", FILES + TESTS, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 400
