"""When a function's calls are recorded, compiled, or left as they are."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves

from lightning_meta.recording.compiling import Compiled, compiled_function
from lightning_meta.recording.graph import Recording
from lightning_meta.recording.parallel import ParallelRecording, in_parts

_log = logging.getLogger(__name__)

# To record takes as long as fifty calls of a tiny model, or a few of a large one.
ALIKE_BEFORE_RECORDING = 10

# Batches of ever new shapes are not worth it.
_MOST_KINDS = 16

# Far above rounding, which compilers change, and far below what something left out would make.
_TOLERANCE = 1e-2


class _Kind:
    """Calls that are alike: how many there were, and their recording once there is one."""

    def __init__(self, form: TreeSpec) -> None:
        self.form = form
        self.calls = 0
        self.recording: Recording | ParallelRecording | None = None
        self.refused = False


class _Autocast(NamedTuple):
    """The mixed precision in force: none where there is no dtype."""

    device_type: str
    dtype: torch.dtype | None

    def off(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device_type, enabled=False)


class Recorder:
    """Calls a pure function, by a recording of it once enough calls were alike.

    A recording's first result is compared with the function's own. Copies and pickles record anew.

    Args:
        function: A pure function of two pytrees of tensors and None: what the tasks share, and the tasks. Returns what
            is summed over tasks and what is stacked.
        plain: What to call where nothing is recorded; computes the same.
        state: Returns a key for all else that the function reads, or None where that cannot be told.
        compiled: Whether to record at the first call and compile the recording; and what cannot be recorded, too.
        threads: Returns how many threads a compiled recording may share the tasks out among.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        plain: Callable[..., Any],
        state: Callable[[], Hashable | None],
        compiled: bool,
        threads: Callable[[], int],
    ) -> None:
        self._function = function
        self._plain = plain
        self._state = state
        self._compiled = compiled
        self._threads = threads
        self._kinds: dict[Hashable, _Kind] = {}
        self._latest: tuple[Hashable, _Kind] | None = None
        self._traced: Compiled | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What was recorded and compiled is left out."""
        return {**self.__dict__, "_kinds": {}, "_latest": None, "_traced": None}

    def __call__(self, shared: Any, tasks: Any) -> Any:
        """Return the function's result."""
        arguments = shared, tasks
        state = self._state()
        if state is None:
            return self._unrecorded(*arguments)
        leaves, form = tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if leaf is not None]
        autocast = _autocast(tensors[0].device.type)
        key = (state, autocast, self._threads(), *map(_signature, leaves))
        kind = self._kind(key, form)
        if kind.refused or kind.form != form:
            return self._unrecorded(*arguments)
        if kind.recording is not None:
            with autocast.off():
                return kind.recording(tensors)
        kind.calls += 1
        if kind.calls <= ALIKE_BEFORE_RECORDING and not self._compiled:
            return self._plain(*arguments)
        return self._record(kind, arguments, tensors, autocast)

    def recordings(self) -> list[Recording | ParallelRecording]:
        """The recordings in use."""
        return [kind.recording for kind in self._kinds.values() if kind.recording is not None]

    def _kind(self, key: Hashable, form: TreeSpec) -> _Kind:
        # Training repeats itself, and comparing long keys is faster than hashing them.
        if self._latest is not None and self._latest[0] == key:
            return self._latest[1]
        kind = self._kinds.pop(key, None) or _Kind(form)
        self._kinds[key] = kind  # the latest comes last
        if len(self._kinds) > _MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._latest = key, kind
        return kind

    def _record(self, kind: _Kind, arguments: tuple[Any, Any], tensors: list[Tensor], autocast: _Autocast) -> Any:
        """Record and compare with the function itself; return the function's result."""
        on_gpu = [tensors[0].device] if tensors[0].device.type == "cuda" else []
        try:
            before = self._state(), _python_generators()
            with torch.random.fork_rng(devices=on_gpu):
                recording: Recording | ParallelRecording
                recording = Recording(self._function, arguments, compiled=self._compiled)
                if self._compiled:
                    recording = in_parts(recording, self._function, arguments, self._threads())
            with torch.random.fork_rng(devices=on_gpu), autocast.off():
                found = recording(tensors)
            if (self._state(), _python_generators()) != before:
                raise RuntimeError("the model changes its attributes, or draws random numbers outside of torch")
        except Exception as error:  # what cannot be recorded, for whatever reason, still runs
            _log.debug("the training step cannot be recorded: %s", error)
            kind.refused = True
            return self._unrecorded(*arguments)
        results = self._plain(*arguments)
        if not all(leaf.isfinite().all() for leaf in tree_leaves(results) if leaf is not None):
            return results  # nothing can be compared with these
        if (self._compiled and recording.draws) or _agree(found, results, slack=10 if autocast.dtype else 1):
            kind.recording = recording
        else:
            rank_zero_warn("The recorded training step differs from the step itself, which is run instead.")
            self._compiled = False
            kind.refused = True
        return results

    def _unrecorded(self, *arguments: Any) -> Any:
        if not self._compiled:
            return self._plain(*arguments)
        if self._traced is None:
            self._traced = compiled_function(self._function, self._plain)
        return self._traced(*arguments)


def _signature(leaf: Tensor | None) -> Hashable:
    return None if leaf is None else (leaf.shape, leaf.stride(), leaf.dtype, leaf.device)


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
