"""Links names in code font to the reference: `TaskLearner` in docstrings and pages alike.

Docstrings name things in single backticks, by the shortest name that a reader understands. A name that is documented
becomes a link, whatever module it is documented under. A name that exists, but is not documented, stays code. A name
that does not exist is an error of the docstring, and Sphinx warns about it.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import pkgutil
import re
from contextlib import suppress
from functools import cache, reduce
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import lightning_meta

_NAME = re.compile(r"([A-Za-z_][\w.]*)(\(.*\))?")


@cache
def _found(name: str) -> Any:
    """The object of a full name, or None."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with suppress(ImportError, ValueError):
            found = importlib.import_module(".".join(parts[:length]))
            return reduce(lambda owner, part: getattr(owner, part, None), parts[length:], found)
    return getattr(builtins, name, None)


def _candidates(target: str, node: nodes.Element) -> list[str]:
    """The full names that a short one may stand for, the likeliest first."""
    module, cls = node.get("py:module"), node.get("py:class")
    inside = [f"{module}.{cls}.{target}", f"{module}.{target}"] if module else []
    return [*inside, target, f"lightning_meta.{target}", f"torch.{target}"]


def _documented(env: BuildEnvironment, target: str, node: nodes.Element) -> str | None:
    """The full name under which the object is documented; in pages, words without a dot are classes or functions."""
    objects = env.domains.python_domain.objects
    kinds = {"class", "function", "exception"}
    if node.get("of_page") and "." not in target:
        objects = {name: entry for name, entry in objects.items() if entry.objtype in kinds}
    last = target.rpartition(".")[2]
    same_end = sorted((name for name in objects if name.rpartition(".")[2] == last), key=len)
    own = [found for name in _candidates(target, node) if (found := _found(name)) is not None]
    for name in same_end:
        if any(_found(name) is found for found in own):
            return name
    tail = [name for name in same_end if f".{name}".endswith(f".{target}")]
    whole = [name for name in tail if objects[name].objtype in kinds]
    return next(iter(whole or (tail if len(tail) == 1 else [])), None)


def _exists(target: str, node: nodes.Element) -> bool:
    if any(_found(name) is not None for name in _candidates(target, node)):
        return True
    cls = _found(f"{node.get('py:module')}.{node.get('py:class')}")
    is_attribute = isinstance(cls, type) and f"self.{target}" in inspect.getsource(cls)
    return is_attribute or target in _all_names()


@cache
def _all_names() -> set[str]:
    """All names that modules of the package and their classes define."""
    names = set()
    for module in pkgutil.walk_packages(lightning_meta.__path__, "lightning_meta."):
        if module.name.endswith("__main__"):
            continue
        members = vars(importlib.import_module(module.name))
        names |= members.keys() | {module.name.rpartition(".")[2]}
        for member in members.values():
            if isinstance(member, type) and member.__module__.startswith("lightning_meta"):
                names |= set(dir(member)) | {f"{member.__name__}.{name}" for name in dir(member)}
    return names


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    """Resolve what Python's domain did not find."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip(".")
    name = _documented(env, target, node)
    if name is not None:
        entry = env.domains.python_domain.objects[name]
        return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, [content], name)
    return content if node.get("of_page") or _exists(target, node) else None


def link_code(app: Sphinx, doctree: nodes.document) -> None:
    """Turn code in the text of Markdown pages into references, where it is the name of a class or function."""
    if not str(app.env.doc2path(app.env.docname)).endswith(".md"):
        return
    for literal in list(doctree.findall(nodes.literal)):
        match = _NAME.fullmatch(literal.astext())
        inside = literal.parent
        while inside is not None and not isinstance(inside, nodes.title | nodes.reference | pending_xref):
            inside = inside.parent
        if match is None or inside is not None:
            continue
        target = match[1]
        if not (target[0].isupper() or "_" in target):  # the other short words are mostly arguments and commands
            continue
        node = pending_xref("", refdomain="py", reftype="obj", reftarget=target, refdoc=app.env.docname, of_page=True)
        literal.replace_self(node)
        node += literal


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", link_code)
    return {"parallel_read_safe": True}
