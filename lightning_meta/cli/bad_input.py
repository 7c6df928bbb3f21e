"""The errors of bad input, which end a command with a message in place of a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from traceback import walk_tb

from polars.exceptions import PolarsError

# What this library's own code calls; user code is in other modules.
_LIBRARIES = {
    *("lightning_meta", "lightning", "lightning_utilities", "fsspec", "jsonargparse", "yaml"),
    *("torch", "torchmetrics", "numpy", "polars", "PIL", "transformers"),
    *(sys.stdlib_module_names - {"__main__"}),
}

_ALWAYS = (OSError, UnpicklingError, PolarsError)
_KINDS = (ValueError, RuntimeError, FloatingPointError, ImportError, *_ALWAYS)


def message_of(error: BaseException) -> str | None:
    """Return the message to print in place of a traceback; None: the error needs its traceback.

    This library's own errors are messages to its users. So are missing or unreadable files, and what jsonargparse says
    about arguments that a constructor refused, in which case the constructor's message is returned. An error that went
    through code of others, such as a user's learner, keeps its traceback.
    """
    if not isinstance(error, _KINDS):
        return None
    packages = _packages(error)
    if not _LIBRARIES.issuperset(packages):
        return None
    cause = error.__cause__
    if cause is not None and not _LIBRARIES.issuperset(_packages(cause)):
        return None
    if packages[-1] == "jsonargparse":
        refused = error.__cause__ or error.__context__
        return str(error) if refused is None else message_of(refused)
    return str(error) if packages[-1] == "lightning_meta" or isinstance(error, _ALWAYS) else None


def _packages(error: BaseException) -> list[str]:
    """Those of the frames that an error went through, from this library's first one on."""
    found = [frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in walk_tb(error.__traceback__)]
    return found[found.index("lightning_meta") :] if "lightning_meta" in found else found


@contextmanager
def one_message(program: str) -> Iterator[None]:
    """End the process with status 2 and a message on bad input; other errors pass."""
    try:
        yield
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        sys.stderr.write(f"{program}: error: {message}\n")
        sys.exit(2)
