"""How autodoc shows classes: fields of named tuples once, attributes as plain text, the arguments of constructors."""

from typing import Any

from sphinx.application import Sphinx
from sphinx.util import inspect


def skip_fields(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out "Alias for field number 0"."""
    return True if type(member).__name__ == "_tuplegetter" else None


def keep_colons(app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]) -> None:
    """Start with an empty comment, since napoleon would take what precedes a colon in the first line for a type."""
    if what in ("attribute", "property", "data"):
        lines[:0] = ["..", ""]


def show_constructor(
    app: Sphinx, what: str, name: str, member: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str | None] | None:
    """Show the arguments of a constructor, where a base class catches them all before."""
    if what != "class" or not signature or not signature.startswith("(*args"):
        return None
    own = inspect.signature(member.__init__, bound_method=True)
    return inspect.stringify_signature(own, show_annotation=False), returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to autodoc, before napoleon does its work."""
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-signature", show_constructor)
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    return {"parallel_read_safe": True}
