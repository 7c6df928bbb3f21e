"""When a function's calls are recorded, compiled, or left as they are."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_meta.attention import differentiable_attention
from lightning_meta.recording.compiling import Compiled, compiled_function
from lightning_meta.recording.graph import Recording
from lightning_meta.recording.parallel import fewer_threads, share_out
from lightning_meta.trees import take_apart

_log = logging.getLogger(__name__)

# To record takes as long as fifty calls of a tiny model, or a few of a large one.
ALIKE_BEFORE_RECORDING = 10

# Batches of ever new shapes, or models that change in every step, are not worth it.
_MOST_KINDS, _MOST_STATES = 16, 8

# Beside the kinds in what is kept for resumed runs.
_SHARES = "shares"

# Far above rounding, which compilers change, and far below what something left out would make.
_TOLERANCE = 1e-2


class _Kind:
    """Calls that are alike: how many there were, and their recording once there is one."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.recording: Recording | None = None
        self.refused = False


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


class _Autocast(NamedTuple):
    """The mixed precision in force: none where there is no dtype."""

    device_type: str
    dtype: torch.dtype | None

    def off(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, enabled=False)


class Recorder:
    """Calls a pure function, by a recording of it once enough calls were alike.

    A recording's first result is compared with the function's own. Copies and pickles record anew.

    Attributes:
        shares: Whether recordings can be repeated in several threads, as far as is known: none draws random numbers,
            none was refused.

    Args:
        function: A pure function of two pytrees of tensors and None: what all tasks share, and some tasks.
        plain: What to call where nothing is recorded; computes the same.
        state: Returns a key for all else that the function reads, or None where that cannot be told.
        compiled: Whether to record at the first call and compile the recording; and what cannot be recorded, too.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        plain: Callable[..., Any],
        state: Callable[[], Hashable | None],
        compiled: bool,
    ) -> None:
        self._function = function
        self._plain = plain
        self._state = state
        self._compiled = compiled
        self._kinds: dict[Hashable, dict[Hashable, _Kind]] = {}
        self._latest: tuple[Hashable, dict[Hashable, _Kind]] | None = None
        self._traced: Compiled | None = None
        self._earlier: Mapping[str, int] = {}
        self.shares = True

    def __getstate__(self) -> dict[str, Any]:
        """What was recorded and compiled is left out."""
        return {**self.__dict__, "_kinds": {}, "_latest": None, "_traced": None, "_earlier": {}}

    def __call__(self, state: Hashable | None, shared: Any, pieces: Sequence[Any], workers: int) -> Iterator[Any]:
        """Yield the function's result for each piece of the tasks, at most ``workers`` ahead.

        Args:
            state: What ``state()`` is.
            shared: What all tasks share.
            pieces: The tasks, some at a time.
            workers: How many threads may repeat recordings at the same time.
        """
        if state is None:
            for piece in pieces:
                yield self._unrecorded(shared, piece)
            return
        leaves: list[Any] = []
        form = take_apart(shared, leaves)
        autocast = _autocast(leaves[0].device.type)
        # Compiled kernels know how many threads they have.
        key = state, autocast, workers if self._compiled else None, form, *map(_signature, leaves)
        kinds = self._kinds_with(key)
        calls = [self._call(kinds, shared, leaves, piece) for piece in pieces]
        for call in calls:
            if self._was_recorded(call.kind):
                with _keeping_random_state(call):
                    self._record(call, autocast, workers)
        if not all(call.repeats_in_any_order() for call in calls):
            for call in calls:
                yield self._alone(call, autocast, workers)
            return
        for first in range(0, len(calls), workers):
            with autocast.off():
                results = share_out([call.repeat for call in calls[first : first + workers]], workers)
            yield from results

    def counts(self) -> list[tuple[Hashable, int]]:
        """Numbers of calls by kind, up to their recording."""
        kinds = {} if self._latest is None else self._latest[1]
        return [(key, kind.calls) for key, kind in kinds.items()]

    def calls(self, counts: Sequence[tuple[Hashable, int]]) -> dict[str, int]:
        """The counts in plain types, for another recorder to `resume`."""
        return {**self._earlier, **{_printed(key): count for key, count in counts}, _SHARES: int(self.shares)}

    def resume(self, calls: Mapping[str, int]) -> None:
        """Go on where another recorder had made these calls, and record at once what it had recorded.

        A recording may round otherwise than the function: so a resumed training goes on to the last bit.
        """
        self._kinds, self._latest, self._earlier = {}, None, calls
        self.shares = bool(calls.get(_SHARES, True))

    def recordings(self) -> list[Recording]:
        """The recordings in use."""
        kinds = [kind for alike in self._kinds.values() for kind in alike.values()]
        return [kind.recording for kind in kinds if kind.recording is not None]

    def _kinds_with(self, key: Hashable) -> dict[Hashable, _Kind]:
        # Training repeats itself, and comparing long keys is faster than hashing them.
        if self._latest is None or self._latest[0] != key:
            if self._latest is not None:
                self._earlier = {}
            self._latest = key, _latest_of(self._kinds, key, dict, _MOST_STATES)
        return self._latest[1]

    def _call(self, kinds: dict[Hashable, _Kind], shared: Any, shared_leaves: list[Any], piece: Any) -> _Call:
        leaves: list[Any] = []
        key = take_apart(piece, leaves), *map(_signature, leaves)
        kind = _latest_of(kinds, key, lambda: _Kind(self._earlier.get(_printed(key), 0)), _MOST_KINDS)
        return _Call(kind, (shared, piece), [leaf for leaf in (*shared_leaves, *leaves) if leaf is not None])

    def _alone(self, call: _Call, autocast: _Autocast, workers: int) -> Any:
        kind = call.kind
        if kind.recording is not None:
            with autocast.off():
                return call.repeat()
        if kind.refused:
            return self._unrecorded(*call.arguments)
        kind.calls += 1
        if not self._was_recorded(kind):
            return self._plain(*call.arguments)
        return self._record(call, autocast, workers)

    def _was_recorded(self, kind: _Kind) -> bool:
        """Whether there were calls enough for a recording that does not exist yet."""
        least = 0 if self._compiled else ALIKE_BEFORE_RECORDING
        return kind.recording is None and not kind.refused and kind.calls > least

    def _record(self, call: _Call, autocast: _Autocast, workers: int) -> Any:
        """Record and compare with the function itself; return the function's result."""
        kind, arguments, tensors = call
        try:
            before = self._state(), _python_generators()
            with _keeping_random_state(call), differentiable_attention():
                recording = Recording(self._function, arguments, compiled=self._compiled)
            with _keeping_random_state(call), autocast.off(), fewer_threads(workers):
                found = recording(tensors)  # compiled now, for that many threads
            if (self._state(), _python_generators()) != before:
                raise RuntimeError("the model changes its attributes, or draws random numbers outside of torch")
        except Exception as error:  # what cannot be recorded, for whatever reason, still runs
            _log.debug("the training step cannot be recorded: %s", error)
            kind.refused, self.shares = True, False
            return self._unrecorded(*arguments)
        results = self._plain(*arguments)
        if not all(leaf.isfinite().all() for leaf in tree_leaves(results) if leaf is not None):
            return results  # nothing can be compared with these
        if (self._compiled and recording.draws) or _agree(found, results, slack=10 if autocast.dtype else 1):
            kind.recording = recording
            self.shares = self.shares and not recording.draws
        else:
            rank_zero_warn("The recorded training step differs from the step itself, which is run instead.")
            self._compiled = False
            kind.refused, self.shares = True, False
        return results

    def _unrecorded(self, *arguments: Any) -> Any:
        if not self._compiled:
            return self._plain(*arguments)
        if self._traced is None:
            self._traced = compiled_function(self._function, self._plain)
        with differentiable_attention():
            return self._traced(*arguments)


def _latest_of(known: dict[Hashable, Any], key: Hashable, make: Callable[[], Any], most: int) -> Any:
    """The value of a key, now the latest; the oldest is forgotten where there are too many."""
    value = known[key] = known.pop(key, None) or make()
    if len(known) > most:
        del known[next(iter(known))]
    return value


def _keeping_random_state(call: _Call) -> AbstractContextManager[None]:
    device = call.tensors[0].device
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _signature(leaf: Tensor | None) -> Hashable:
    return None if leaf is None else (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


def _printed(key: Hashable) -> str:
    """A kind as checkpoints know it, on whichever device of a type it was."""
    return re.sub(r", index=\d+", "", repr(key))


def _autocast(device_type: str) -> _Autocast:
    enabled = torch.is_autocast_enabled(device_type)
    return _Autocast(device_type, torch.get_autocast_dtype(device_type) if enabled else None)


def _python_generators() -> tuple[Any, ...]:
    numpy_state = np.random.get_state(legacy=True)
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:]  # type: ignore[index]


def _agree(found: Any, expected: Any, slack: float) -> bool:
    """Whether results are close, part by part; in a part, small tensors are compared on the scale of the largest."""
    for ours, theirs in zip(found, expected, strict=True):
        pairs = [
            (a.double(), b.double())
            for a, b in zip(tree_leaves(ours), tree_leaves(theirs), strict=True)
            if a is not None
        ]
        distance = sum(float((a - b).norm()) for a, b in pairs)
        if not distance <= slack * _TOLERANCE * sum(float(b.norm()) for _, b in pairs):
            return False
    return True
