"""The structure of package and tests: imports point down one list of folders, and files stay short."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_meta
from lightning_meta import algorithms
from lightning_meta.algorithms import baselines
from lightning_meta.learners.per_task import PerTaskFunctions

PACKAGE = Path(lightning_meta.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# From the top down: a file may import from its own folder and from those further down.
FOLDERS = (
    *(
        "__main__",
        "cli",
        "dashboard",
        "callbacks",
        "interop",
        "analysis",
        "prediction",
        "algorithms",
        "learners",
        "execution",
        "data",
        "checkpoints",
    ),
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


EXTENSION_POINTS = frozenset(
    {"adapt_task", "query_output", "query_samples", "adapted_parameters", "task_loss", "task_gradient", "adaptation"}
    | {
        "prepare_support",
        "output_shape",
        "task_metrics",
        "after_batch",
        "check_data",
        "training_phase",
        "rates_in_errors",
        "__init__",
    }
)


@pytest.mark.parametrize("learner", [getattr(m, name) for m in (algorithms, baselines) for name in m.__all__])
def test_only_extension_points_are_overridden(learner):
    """A method of the package with a body is overridden only if it is named as an extension point."""
    own = [cls for cls in learner.__mro__ if cls.__module__.startswith("lightning_meta.")]
    for position, cls in enumerate(own):
        for base in own[position + 1 :]:
            for name in vars(cls).keys() & vars(base).keys() - EXTENSION_POINTS:
                method = vars(base)[name]
                concrete = inspect.isfunction(method) and not getattr(method, "__isabstractmethod__", False)
                assert not concrete, f"{cls.__name__} overrides {base.__name__}.{name}"


def test_extension_points_are_documented():
    source = inspect.getsource(PerTaskFunctions)
    public = source[: source.index("# ---- Helpers")]
    for name in EXTENSION_POINTS - {"__init__"}:
        assert f"def {name}(" in public
        assert inspect.getdoc(getattr(PerTaskFunctions, name))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_annotations_of_inner_functions_are_not_evaluated(path):
    """They would be evaluated in every call of the outer function, and `torch.compile` cannot trace that."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = [
        node
        for outer in functions
        for node in ast.walk(outer)
        if isinstance(node, ast.FunctionDef) and node is not outer
    ]
    annotated = any(node.returns or any(argument.annotation for argument in node.args.args) for node in inner)
    assert not annotated or "from __future__ import annotations" in path.read_text()
