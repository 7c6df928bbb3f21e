"""How autodoc treats members: fields of named tuples are in the class's own list, and attributes are plain text."""

from typing import Any

from sphinx.application import Sphinx


def skip_fields(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out "Alias for field number 0"."""
    return True if type(member).__name__ == "_tuplegetter" else None


def keep_colons(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Start with an empty comment, since napoleon would take what precedes a colon in the first line for a type."""
    if what in ("attribute", "property", "data"):
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc, before napoleon does its work."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    return {"parallel_read_safe": True}
