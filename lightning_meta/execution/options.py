"""How a user wants batches of tasks to be computed."""

from dataclasses import dataclass
from typing import Literal

from lightning_meta.arguments import check_optional_count

CompileMode = bool | Literal["record"] | None
"""How training steps are run; described in `TaskLearner`."""


@dataclass(frozen=True)
class Execution:
    """How batches of tasks are computed, as in `TaskLearner`; may be replaced between two batches.

    Raises:
        ValueError: If a value is out of its range.
    """

    task_chunk_size: int | None = None
    compile: CompileMode = None
    threads: int | None = None
    """The most CPU threads that share captured steps; None: as many as torch has."""

    def __post_init__(self) -> None:
        check_optional_count("task_chunk_size", self.task_chunk_size)
        check_optional_count("threads", self.threads)
        if not (self.compile is None or isinstance(self.compile, bool) or self.compile == "record"):
            raise ValueError(f'compile={self.compile!r} is not one of None, "record", True and False')

    @property
    def vectorizes(self) -> bool:
        """Whether tasks are vectorized at all."""
        return self.task_chunk_size != 1
