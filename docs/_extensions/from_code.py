"""Directives whose content is made from code, configurations and results when the documentation is built.

- ``{method-table} tasks``: which learner can do what; the names of the tables are in `facts.TABLES`.
- ``{logged} MAML``: the names that a learner logs.
- ``{paper} module`` and ``{differences} module``: these parts of an algorithm's docstring.
- ``{configurations}``: the files of ``configs/``.
- ``{command-help} adapt``: what ``lightning-meta adapt --help`` prints.
- ``{measured} MAML``: an algorithm's configurations, its lines of the results, and which were not run yet.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import itertools
import os
import re
import sys
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import facts
import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent.parent


class FromCode(SphinxDirective):
    """A directive that is replaced by Markdown."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Parse the Markdown."""
        return self.parse_text_to_nodes(self.markdown())

    @abstractmethod
    def markdown(self) -> str:
        """Return the content."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


@cache
def configurations() -> list[tuple[Path, dict[str, Any]]]:
    """Return the files of ``configs/`` with their content."""
    return [(path, yaml.safe_load(path.read_text())) for path in sorted((ROOT / "configs").glob("*.yaml"))]


def class_of(content: dict[str, Any], part: str) -> str:
    """Return the name of the class of a configuration's model or data."""
    return str(content[part]["class_path"].rpartition(".")[2])


class MethodTable(FromCode):
    """A row for each learner, a column for each question."""

    def markdown(self) -> str:
        """Ask each learner."""
        questions = facts.TABLES[self.arguments[0]]
        rows = [
            [f"`{variant.name}`", *("✓" if question(variant) else "–" for question in questions.values())]
            for variant in facts.VARIANTS
        ]
        return table(["learner", *questions], rows)


class Logged(FromCode):
    """The names that a learner logs, for regressions and for classes."""

    def markdown(self) -> str:
        """Run the learner."""
        variant = next(one for one in facts.VARIANTS if one.name == self.arguments[0])
        kinds = {"real targets": (True, facts.takes_real_targets), "classes": (False, facts.takes_classes)}
        lines = []
        for kind, (real, takes) in kinds.items():
            if takes(variant):
                names = ", ".join(f"`{name}`" for name in facts.logged(variant, real))
                lines.append(f"- With {kind}: {names}")
        return "\n".join(lines)


class OfDocstring(FromCode):
    """A part of a module's docstring, which is reStructuredText."""

    def markdown(self) -> str:
        """Return the part in a directive for the other language."""
        text = inspect.getdoc(importlib.import_module(self.arguments[0])) or ""
        return f"```{{eval-rst}}\n{self.part(text)}\n```"

    @abstractmethod
    def part(self, docstring: str) -> str:
        """Return the part."""


class Paper(OfDocstring):
    """The papers, with links to arXiv."""

    def part(self, docstring: str) -> str:
        """Return the paragraph."""
        found = re.search(r"^Papers?: .*?(?=\n\n)", docstring, re.MULTILINE | re.DOTALL)
        assert found, f"{self.arguments[0]} names no paper"
        return re.sub(r"arXiv\s+(\d+\.\d+)", r"`arXiv \1 <https://arxiv.org/abs/\1>`__", found[0])


class Differences(OfDocstring):
    """The differences from the paper."""

    def part(self, docstring: str) -> str:
        """Return what follows the words, to the end."""
        found = re.search(r"^Differences from the papers?:\s*(.*)", docstring, re.MULTILINE | re.DOTALL)
        assert found, f"{self.arguments[0]} lists no differences"
        return found[1][0].upper() + found[1][1:]


class Configurations(FromCode):
    """A row for each file of ``configs/``."""

    required_arguments = 0

    def markdown(self) -> str:
        """Read the files."""
        rows = []
        for path, content in configurations():
            self.env.note_dependency(str(path))
            lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
            comment = " ".join(line.lstrip("# ") for line in lines)
            classes = " on ".join(f"`{class_of(content, part)}`" for part in ("model", "data"))
            rows.append([f"`{path.stem}`", f"{classes}. {comment}".replace("|", "\\|")])
        return table(["configuration", "about"], rows)


class CommandHelp(FromCode):
    """The help of a command, closed until the reader opens it."""

    required_arguments = 0
    optional_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Return the help between the tags of HTML that fold it."""
        command = " ".join(["lightning-meta", *self.arguments])
        text = self.markdown()
        literal = nodes.literal_block(text, text, language="text")
        opening = f"<details><summary><code>{command} --help</code></summary>"
        return [nodes.raw("", opening, format="html"), literal, nodes.raw("", "</details>", format="html")]

    def markdown(self) -> str:
        """Run the command."""
        from lightning_meta.cli import main

        printed = io.StringIO()
        arguments = [*self.arguments, "--help"]
        code: str | int | None = 0
        with (
            contextlib.redirect_stdout(printed),
            mock.patch.object(sys, "argv", ["lightning-meta", *arguments]),
            mock.patch.dict(os.environ, {"COLUMNS": "100"}),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
        text = printed.getvalue()
        assert not code, f"lightning-meta {' '.join(arguments)} ended with status {code}"
        assert text.strip(), f"lightning-meta {' '.join(arguments)} printed nothing"
        return text


class Measured(FromCode):
    """An algorithm's configurations, its lines of the results, and which were not run yet."""

    def markdown(self) -> str:
        """Read the configurations, and ask the module that writes the page of results."""
        sys.path.insert(0, str(ROOT))
        from tools.results.page import rows

        learner = self.arguments[0]
        names = [f"`{path.stem}`" for path, content in configurations() if class_of(content, "model") == learner]
        if not names:
            return f"No configuration of `{learner}` is shipped."
        listed = f"Shipped configurations: {', '.join(names)}. Any of them is `NAME` in these commands:"
        commands = "\n".join(
            f"lightning-meta {verb} --config configs/NAME.yaml{path}"
            for verb, path in (("fit", ""), ("test", " --ckpt_path CHECKPOINT"))
        )
        measured = rows(ROOT / "results", learner)
        absent = [name for name in names if name not in measured]
        not_run = f"Not run yet: {', '.join(absent)}." if absent else ""
        return f"{listed}\n\n```bash\n{commands}\n```\n\n{measured}\n{not_run}\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directives."""
    app.add_directive("method-table", MethodTable)
    app.add_directive("logged", Logged)
    app.add_directive("paper", Paper)
    app.add_directive("differences", Differences)
    app.add_directive("configurations", Configurations)
    app.add_directive("command-help", CommandHelp)
    app.add_directive("measured", Measured)
    return {"parallel_read_safe": True}
