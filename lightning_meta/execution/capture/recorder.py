"""When a function's calls are captured, and when a capture is replayed."""

import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_meta.episodes.trees import flatten
from lightning_meta.execution.attention import differentiable_attention
from lightning_meta.execution.capture.compiling import RandomState, agree, first_line
from lightning_meta.execution.capture.graph import Autocast, Recording
from lightning_meta.execution.capture.parallel import fewer_threads, share_out

# A capture takes as long as fifty calls of a tiny model, or a few of a large one.
ALIKE_BEFORE_RECORDING = 10

# A recording has paid for itself after this many replays. For each that has not (yet), the next one waits for eight
# times as many alike calls: a value that changes every few steps costs at most two captures. Calls are counted instead
# of timed: captures can round differently, and runs must not depend on a clock.
_REPEATS_TO_PAY = 100
_WAIT_LONGER = 8

# Batches whose shapes always change, or models that change in every step, are not worth more.
_MOST_KINDS, _MOST_STATES = 16, 8


@dataclass(eq=False)
class _Kind:
    """Calls that are alike."""

    calls: int = 0  # steps with such calls before the capture
    repeats: int = 0  # calls that replayed it
    was_recorded: int = 0  # whether the run that this one resumes had captured them
    recording: Recording | None = field(default=None, init=False)
    refused: bool = field(default=False, init=False)  # whether capturing failed

    @property
    def unpaid(self) -> bool:
        """Whether there is a recording that has not paid for itself."""
        return (self.recording is not None or bool(self.was_recorded)) and self.repeats < _REPEATS_TO_PAY

    def progress(self) -> list[int]:
        """Return the constructor's arguments, in plain types."""
        return [self.calls, self.repeats, int(self.recording is not None or self.was_recorded)]


class _Call(NamedTuple):
    """A call: its kind, its arguments, and those of their leaves that are not None."""

    kind: _Kind
    arguments: tuple[Any, Any]
    tensors: list[Tensor]

    def replay(self) -> Any:
        assert self.kind.recording is not None
        return self.kind.recording(self.tensors)


class Progress(NamedTuple):
    """The progress of a recorder."""

    kinds: list[tuple[Hashable, list[int]]]  # kinds of calls, with their `_Kind.progress`
    lost: int  # recordings that were dropped before they had paid for themselves
    shares: bool  # as the recorder's

    def of_another_phase(self) -> "Progress":
        """Return what is left once calls are no longer alike."""
        return Progress([], self.lost + sum(_Kind(*numbers).unpaid for _, numbers in self.kinds), self.shares)


@dataclass(eq=False)
class Recorder:
    """Calls a pure function, and captures it once enough calls were alike; later ones replay the capture.

    A recording's first result is compared with the function's own. Copies and pickles have no recordings.
    """

    _function: Callable[..., Any]  # pure, of two pytrees of tensors and None: what all tasks share, and some tasks
    _plain: Callable[..., Any]  # computes the same; called where nothing is captured
    _state: Callable[[], Hashable]  # returns a key for everything else that the function reads
    _compiled: bool  # whether to capture the first call and compile it
    _kinds: dict[Hashable, dict[Hashable, _Kind]] = field(default_factory=dict)
    _latest: tuple[Hashable, dict[Hashable, _Kind]] | None = None
    _earlier: dict[str, _Kind] = field(default_factory=dict)  # the resumed run's, not met again so far
    _lost: int = 0
    _logged: bool = False
    shares: bool = True  # whether threads can share replays, as far as is known: none draws, and no kind was refused

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kinds": {}, "_latest": None, "_earlier": {}, "_lost": 0}

    def __call__(self, state: Hashable, shared: Any, pieces: Sequence[Any], workers: int) -> Iterator[Any]:
        """Yield the function's result for each piece of the tasks; ``workers`` threads may replay at the same time."""
        leaves: list[Any] = []
        form = flatten(shared, leaves)
        autocast = Autocast.now(leaves[0].device.type)
        # Compiled kernels are made for a number of threads.
        key = state, autocast, workers if self._compiled else None, form, *map(_signature, leaves)
        kinds = self._kinds_with(key)
        calls = [self._call(kinds, shared, leaves, piece) for piece in pieces]
        self._record_what_is_due(calls, autocast, workers)
        if any(call.kind.recording is None or call.kind.recording.draws for call in calls):  # the order matters
            for call in calls:
                yield self._alone(call, autocast)
            return
        for first in range(0, len(calls), workers):
            with autocast.off():
                results = share_out([call.replay for call in calls[first : first + workers]], workers)
            for call in calls[first : first + workers]:
                call.kind.repeats += 1
            yield from results

    def progress(self) -> Progress:
        """Return the progress of the calls of the latest state."""
        kinds = {} if self._latest is None else self._latest[1]
        others = (kind for alike in self._kinds.values() if alike is not kinds for kind in alike.values())
        lost = self._lost + sum(kind.unpaid for kind in others)
        return Progress([(key, kind.progress()) for key, kind in kinds.items()], lost, self.shares)

    def printed(self, progress: Progress) -> dict[str, Any]:
        """Return the progress in plain types, for another recorder to `resume`."""
        kinds = {printed: kind.progress() for printed, kind in self._earlier.items()}
        kinds |= {_printed(key): numbers for key, numbers in progress.kinds}
        return {"kinds": kinds, "lost": progress.lost, "shares": progress.shares}

    def resume(self, progress: Mapping[str, Any], same_phase: bool = True) -> None:
        """Continue from another recorder's progress, and capture what it had captured at the first call.

        A recording can round differently from the function: so a resumed run stays bit-identical. In another phase,
        calls of the same form are not alike.
        """
        self._kinds, self._latest = {}, None
        self._earlier = {printed: _Kind(*numbers) for printed, numbers in progress["kinds"].items()}
        self._lost, self.shares = progress["lost"], progress["shares"]
        if not same_phase:
            self._drop_earlier()

    def recordings(self) -> list[Recording]:
        """Return the recordings in use."""
        return [kind.recording for kind in self._every_kind() if kind.recording is not None]

    def _every_kind(self) -> Iterator[_Kind]:
        yield from self._earlier.values()
        for alike in self._kinds.values():
            yield from alike.values()

    def _drop_earlier(self) -> None:
        self._lost += sum(kind.unpaid for kind in self._earlier.values())
        self._earlier = {}

    def _kinds_with(self, key: Hashable) -> dict[Hashable, _Kind]:
        # Mostly the key is the latest, and comparing long keys is faster than hashing them.
        if self._latest is None or self._latest[0] != key:
            if self._latest is not None:
                self._drop_earlier()
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
            return call.replay()

    def _record_what_is_due(self, calls: Sequence[_Call], autocast: Autocast, workers: int) -> None:
        """Capture the kinds with enough calls."""
        unrecorded = {id(c.kind): c for c in calls if c.kind.recording is None and not c.kind.refused}.values()
        if not unrecorded:
            return
        unpaid = self._lost + sum(kind.unpaid for kind in self._every_kind())
        wait = 0 if self._compiled and unpaid < 2 else ALIKE_BEFORE_RECORDING * _WAIT_LONGER**unpaid
        for call in unrecorded:
            call.kind.calls += 1
            if call.kind.was_recorded or call.kind.calls > wait:
                with RandomState(call.tensors[0].device).again():
                    self._record(call, autocast, workers)

    def _record(self, call: _Call, autocast: Autocast, workers: int) -> None:
        """Capture a call, and compare the recording with the function itself."""
        kind, arguments, tensors = call
        state, drawn_from = self._state(), RandomState(tensors[0].device)
        results = self._plain(*arguments)  # first, as a model may set itself up at its first call
        start = time.perf_counter()
        recording = None
        try:
            with drawn_from.again(), differentiable_attention():
                captured = Recording(self._function, arguments, compiled=self._compiled)
            with drawn_from.again(), autocast.off(), fewer_threads(workers):
                found = captured(tensors)  # compiled now, for that many threads
            if self._state() != state:
                raise RuntimeError("the model changes its attributes")
        except Exception as error:  # whatever cannot be captured still runs
            self._log(f"Training steps are run by Python, as they cannot be recorded: {first_line(error)}")
        else:
            if (self._compiled and captured.draws) or agree(found, results, slack=10 if autocast.dtype else 1):
                recording, seconds = captured, time.perf_counter() - start
                self._log(f"Training steps are recorded: {captured.operations:,} operations, in {seconds:.1f} s.")
            else:
                rank_zero_warn("The recorded training step differs from the step itself, which is run instead.")
        kind.recording, kind.refused = recording, recording is None
        self.shares = self.shares and recording is not None and not recording.draws

    def _log(self, message: str) -> None:
        if not self._logged:
            rank_zero_info(message)
        self._logged = True


def _latest_of(known: dict[Hashable, Any], key: Hashable, make: Callable[[], Any], most: int) -> tuple[Any, Any]:
    """Make a key's value the latest; return it, and the oldest if that was removed because there were too many."""
    value = known[key] = known.pop(key) if key in known else make()
    return value, known.pop(next(iter(known))) if len(known) > most else None


def _signature(leaf: Tensor | None) -> Hashable:
    return None if leaf is None else (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


def _printed(key: Hashable) -> str:
    """Return a kind's key as checkpoints name it, the same for every device of a type."""
    return re.sub(r", index=\d+", "", repr(key))
