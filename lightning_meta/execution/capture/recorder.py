"""When a function's calls are recorded, and when a recording is used."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_meta.episodes.trees import flatten
from lightning_meta.execution.attention import differentiable_attention
from lightning_meta.execution.capture.autocast import Autocast, autocast_now
from lightning_meta.execution.capture.graph import Recording
from lightning_meta.execution.capture.parallel import fewer_threads, share_out
from lightning_meta.execution.capture.proof import RandomState, agree

# To record takes as long as fifty calls of a tiny model, or a few of a large one.
ALIKE_BEFORE_RECORDING = 10

# A recording that was repeated this often has paid for itself. For each that has not (yet), the next one waits for
# eight times as many alike calls: a value that changes every few steps costs two recordings, no more. Counted, not
# timed: recordings may round otherwise, and runs must not depend on a clock.
_REPEATS_TO_PAY = 100
_WAIT_LONGER = 8

# Batches of ever new shapes, or models that change in every step, are not worth it.
_MOST_KINDS, _MOST_STATES = 16, 8


class _Kind:
    """Calls that are alike.

    Attributes:
        calls: In how many steps there were any before the recording.
        repeats: How many repeated it.
        recording: The recording once there is one.
        refused: Whether recording failed.
        was_recorded: Whether an earlier run, which this one goes on from, had recorded them.
    """

    def __init__(self, calls: int = 0, repeats: int = 0, was_recorded: int = 0) -> None:
        self.calls = calls
        self.repeats = repeats
        self.recording: Recording | None = None
        self.refused = False
        self.was_recorded = was_recorded

    @property
    def unpaid(self) -> bool:
        """Whether there is a recording that has not paid for itself."""
        return (self.recording is not None or bool(self.was_recorded)) and self.repeats < _REPEATS_TO_PAY

    def progress(self) -> list[int]:
        """What the constructor takes, in plain types."""
        return [self.calls, self.repeats, int(self.recording is not None or self.was_recorded)]


class _Call(NamedTuple):
    """A call: what it is like, its arguments, and their leaves that are not None."""

    kind: _Kind
    arguments: tuple[Any, Any]
    tensors: list[Tensor]

    def repeats_in_any_order(self) -> bool:
        """Whether it only repeats a recording, which draws no random numbers."""
        return self.kind.recording is not None and not self.kind.recording.draws

    def repeat(self) -> Any:
        """Repeat the recording."""
        assert self.kind.recording is not None
        return self.kind.recording(self.tensors)


class Progress(NamedTuple):
    """How far a recorder is.

    Attributes:
        kinds: Kinds of calls, with their `_Kind.progress`.
        lost: How many recordings are gone that had not paid for themselves.
        shares: As the recorder's.
    """

    kinds: list[tuple[Hashable, list[int]]]
    lost: int
    shares: bool

    def of_another_phase(self) -> Progress:
        """What is left where calls are no longer alike."""
        return Progress([], self.lost + sum(_Kind(*numbers).unpaid for _, numbers in self.kinds), self.shares)


class Recorder:
    """Calls a pure function, by a recording of it once enough calls were alike.

    A recording's first result is compared with the function's own. Copies and pickles record anew.

    Attributes:
        shares: Whether recordings can be repeated in several threads, as far as is known: none draws random numbers,
            none was refused.

    Args:
        function: A pure function of two pytrees of tensors and None: what all tasks share, and some tasks.
        plain: What to call where nothing is recorded; computes the same.
        state: Returns a key for all else that the function reads.
        compiled: Whether to record at the first call and compile the recording.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        plain: Callable[..., Any],
        state: Callable[[], Hashable],
        compiled: bool,
    ) -> None:
        self._function = function
        self._plain = plain
        self._state = state
        self._compiled = compiled
        self._kinds: dict[Hashable, dict[Hashable, _Kind]] = {}
        self._latest: tuple[Hashable, dict[Hashable, _Kind]] | None = None
        self._earlier: dict[str, _Kind] = {}  # what a run was resumed with and has not met again
        self._lost = 0
        self._told = False
        self.shares = True

    def __getstate__(self) -> dict[str, Any]:
        """What was recorded and compiled is left out."""
        return {**self.__dict__, "_kinds": {}, "_latest": None, "_earlier": {}, "_lost": 0}

    def __call__(self, state: Hashable, shared: Any, pieces: Sequence[Any], workers: int) -> Iterator[Any]:
        """Yield the function's result for each piece of the tasks, at most ``workers`` ahead.

        Args:
            state: What ``state()`` is.
            shared: What all tasks share.
            pieces: The tasks, some at a time.
            workers: How many threads may repeat recordings at the same time.
        """
        leaves: list[Any] = []
        form = flatten(shared, leaves)
        autocast = autocast_now(leaves[0].device.type)
        # Compiled kernels know how many threads they have.
        key = state, autocast, workers if self._compiled else None, form, *map(_signature, leaves)
        kinds = self._kinds_with(key)
        calls = [self._call(kinds, shared, leaves, piece) for piece in pieces]
        self._record_what_is_due(calls, autocast, workers)
        if not all(call.repeats_in_any_order() for call in calls):
            for call in calls:
                yield self._alone(call, autocast)
            return
        for first in range(0, len(calls), workers):
            with autocast.off():
                results = share_out([call.repeat for call in calls[first : first + workers]], workers)
            for call in calls[first : first + workers]:
                call.kind.repeats += 1
            yield from results

    def progress(self) -> Progress:
        """Where the calls of the latest state stand."""
        kinds = {} if self._latest is None else self._latest[1]
        others = (kind for alike in self._kinds.values() if alike is not kinds for kind in alike.values())
        lost = self._lost + sum(kind.unpaid for kind in others)
        return Progress([(key, kind.progress()) for key, kind in kinds.items()], lost, self.shares)

    def printed(self, progress: Progress) -> dict[str, Any]:
        """The progress in plain types, for another recorder to `resume`."""
        kinds = {printed: kind.progress() for printed, kind in self._earlier.items()}
        kinds |= {_printed(key): numbers for key, numbers in progress.kinds}
        return {"kinds": kinds, "lost": progress.lost, "shares": progress.shares}

    def resume(self, progress: Mapping[str, Any], same_phase: bool = True) -> None:
        """Go on where another recorder had this progress, and record at once what it had recorded.

        A recording may round otherwise than the function: so a resumed training goes on to the last bit.

        Args:
            progress: From `printed`.
            same_phase: Whether calls of the same form will be alike.
        """
        self._kinds, self._latest = {}, None
        self._earlier = {printed: _Kind(*numbers) for printed, numbers in progress["kinds"].items()}
        self._lost, self.shares = progress["lost"], progress["shares"]
        if not same_phase:
            self._lost += sum(kind.unpaid for kind in self._earlier.values())
            self._earlier = {}

    def recordings(self) -> list[Recording]:
        """The recordings in use."""
        return [kind.recording for kind in self._every_kind() if kind.recording is not None]

    def _every_kind(self) -> Iterator[_Kind]:
        yield from self._earlier.values()
        for alike in self._kinds.values():
            yield from alike.values()

    def _kinds_with(self, key: Hashable) -> dict[Hashable, _Kind]:
        # Training repeats itself, and comparing long keys is faster than hashing them.
        if self._latest is None or self._latest[0] != key:
            if self._latest is not None:
                self._lost += sum(kind.unpaid for kind in self._earlier.values())
                self._earlier = {}
            kinds, forgotten = _latest_of(self._kinds, key, dict, _MOST_STATES)
            self._lost += sum(kind.unpaid for kind in (forgotten or {}).values())
            self._latest = key, kinds
        return self._latest[1]

    def _call(self, kinds: dict[Hashable, _Kind], shared: Any, shared_leaves: list[Any], piece: Any) -> _Call:
        leaves: list[Any] = []
        key = flatten(piece, leaves), *map(_signature, leaves)
        kind, forgotten = _latest_of(kinds, key, lambda: self._earlier.pop(_printed(key), None) or _Kind(), _MOST_KINDS)
        self._lost += forgotten is not None and forgotten.unpaid
        return _Call(kind, (shared, piece), [leaf for leaf in (*shared_leaves, *leaves) if leaf is not None])

    def _alone(self, call: _Call, autocast: Autocast) -> Any:
        if call.kind.recording is None:
            return self._plain(*call.arguments)
        call.kind.repeats += 1
        with autocast.off():
            return call.repeat()

    def _record_what_is_due(self, calls: Sequence[_Call], autocast: Autocast, workers: int) -> None:
        """Record the kinds of which there were calls enough."""
        unrecorded = {id(c.kind): c for c in calls if c.kind.recording is None and not c.kind.refused}
        for call in unrecorded.values():
            call.kind.calls += 1
        wait = self._wait() if unrecorded else 0
        for call in unrecorded.values():
            if call.kind.was_recorded or call.kind.calls > wait:
                with RandomState(call.tensors[0].device).again():
                    self._record(call, autocast, workers)

    def _wait(self) -> int:
        """In how many steps calls must have been alike before they are recorded."""
        unpaid = self._lost + sum(kind.unpaid for kind in self._every_kind())
        if self._compiled and unpaid < 2:
            return 0
        return ALIKE_BEFORE_RECORDING * _WAIT_LONGER**unpaid

    def _record(self, call: _Call, autocast: Autocast, workers: int) -> None:
        """Record, and compare with the function itself."""
        kind, arguments, tensors = call
        state, drawn_from = self._state(), RandomState(tensors[0].device)
        results = self._plain(*arguments)  # first, as a model may set itself up at its first call
        start = time.perf_counter()
        try:
            with drawn_from.again(), differentiable_attention():
                recording = Recording(self._function, arguments, compiled=self._compiled)
            with drawn_from.again(), autocast.off(), fewer_threads(workers):
                found = recording(tensors)  # compiled now, for that many threads
            if self._state() != state:
                raise RuntimeError("the model changes its attributes")
        except Exception as error:  # what cannot be recorded, for whatever reason, still runs
            self._tell(f"Training steps are run by Python, as they cannot be recorded: {_first_line(error)}")
            kind.refused, self.shares = True, False
            return
        if (self._compiled and recording.draws) or agree(found, results, slack=10 if autocast.dtype else 1):
            seconds = time.perf_counter() - start
            self._tell(f"Training steps are recorded: {recording.operations:,} operations, in {seconds:.1f} s.")
            kind.recording = recording
            self.shares = self.shares and not recording.draws
        else:
            rank_zero_warn("The recorded training step differs from the step itself, which is run instead.")
            kind.refused, self.shares = True, False

    def _tell(self, message: str) -> None:
        if not self._told:
            rank_zero_info(message)
        self._told = True


def _latest_of(known: dict[Hashable, Any], key: Hashable, make: Callable[[], Any], most: int) -> tuple[Any, Any]:
    """The value of a key, now the latest, and what was forgotten for it: the oldest, where there are too many."""
    value = known[key] = known.pop(key) if key in known else make()
    return value, known.pop(next(iter(known))) if len(known) > most else None


def _signature(leaf: Tensor | None) -> Hashable:
    return None if leaf is None else (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


def _printed(key: Hashable) -> str:
    """A kind as checkpoints know it, on whichever device of a type it was."""
    return re.sub(r", index=\d+", "", repr(key))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
