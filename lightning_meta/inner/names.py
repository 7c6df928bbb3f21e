"""Names of parameters as keys of a `ParameterDict`."""


def key_of(name: str) -> str:
    """Return a parameter's name as a key, which may not contain a dot."""
    return name.replace(".", "/")
