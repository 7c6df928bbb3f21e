"""The errors of bad input, which end a command with a message in place of a traceback."""

from pickle import UnpicklingError

from polars.exceptions import PolarsError

BAD_INPUT = (ValueError, OSError, RuntimeError, FloatingPointError, ImportError, UnpicklingError, PolarsError)
