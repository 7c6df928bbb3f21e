"""Names of parameters and layers as keys of a `ParameterDict`."""


def key_of(name: str) -> str:
    """Return a name as a key, which may not contain a dot; "/" for a model itself, which has no name."""
    return name.replace(".", "/") or "/"
