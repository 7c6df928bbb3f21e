"""The errors of bad input, which end a command with a message in place of a traceback."""

from pickle import UnpicklingError
from traceback import walk_tb

from polars.exceptions import PolarsError

BAD_INPUT = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, UnpicklingError, PolarsError)


def message_of(error: BaseException) -> str | None:
    """Return the message to print in place of a traceback; None: the error needs its traceback.

    This library's own errors are messages to its users. So are missing files, and what jsonargparse says about
    arguments that a constructor refused, in which case the constructor's message is returned.
    """
    if isinstance(error, FileNotFoundError):
        return str(error)
    if not isinstance(error, (ValueError, OSError, FloatingPointError)):
        return None
    *_, (frame, _) = walk_tb(error.__traceback__)
    package = frame.f_globals.get("__name__", "").split(".")[0]
    if package == "jsonargparse":
        refused = error.__cause__ or error.__context__
        return str(error) if refused is None else message_of(refused)
    return str(error) if package == "lightning_meta" else None
