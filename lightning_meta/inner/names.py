"""Names of parameters as keys of a `ParameterDict`."""

from __future__ import annotations


def key_of(name: str) -> str:
    """A parameter's name as a key: a parameter's own name may not contain a dot."""
    return name.replace(".", "/")
