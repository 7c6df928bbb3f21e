"""How per-task functions are applied to a batch of tasks: vectorized, in pieces, one by one, or compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from lightning_meta.attention import differentiable_attention
from lightning_meta.episode import Episode
from lightning_meta.example_independence import may_keep_padding
from lightning_meta.host_memory import keep_freed_memory
from lightning_meta.recording import ClosedWorld, Guarded, OpenWorldError, Progress, Recorder, ReplacedError
from lightning_meta.task import MetaParameters, TaskResult
from lightning_meta.task_batches import (
    ModelSize,
    drops,
    fastest_chunk_size,
    fastest_workers,
    fill_padding,
    is_tiny,
    split_by_chunk,
    split_by_size,
)

if TYPE_CHECKING:
    from lightning_meta.learner import MetaLearner

_CANNOT_VECTORIZE = (
    "If the model cannot be vectorized over tasks (it branches on values, has a recurrent layer, or normalizes in "
    "mixed precision), set task_chunk_size=1 to take the tasks one after another. A model that writes to its buffers "
    "cannot run per task: let it return what it would write."
)
_OUT_OF_MEMORY = (
    "Out of memory: set task_chunk_size to hold fewer tasks at once (1 holds one). Where that is not enough, MAML with "
    "checkpoint_inner_loop=True keeps about the square root of its inner steps, with first_order=True or as implicit "
    "MAML one."
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's or the host's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


CompileMode = bool | Literal["record"] | None
"""How training steps are run; described in `MetaLearner`."""


def check_compile(compile: Any) -> None:
    """Raise a ValueError unless the value is a `CompileMode`."""
    if not (compile is None or isinstance(compile, bool) or compile == "record"):
        raise ValueError(f'compile={compile!r} is not one of None, "record", True and False')


class TaskMapping:
    """Applies a learner's per-task functions to batches, as its ``task_chunk_size`` and ``compile`` say.

    Args:
        learner: The learner.
        compile: How training steps are run.
        own_gradient: Whether the learner computes its meta-gradient itself, rather than by differentiating a meta-loss.
    """

    def __init__(self, learner: MetaLearner, compile: CompileMode, own_gradient: bool) -> None:
        self._learner = learner
        self._model_size = ModelSize.of(learner.model)
        self._own_gradient = own_gradient
        self._compiled = compile is True
        self._world = ClosedWorld(learner)
        self._recorder: Recorder | None = None
        self._guarded: Guarded | None = None
        if compile is not False:
            self._recorder = Recorder(self._summed_gradients, self._eagerly, self._world.state, self._compiled)
        if compile:
            self._guarded = Guarded(self._summed_gradients, self._eagerly, self._compiled)
        self._under_guards = False
        self._told = False
        self._phase = ""
        self._before: tuple[int, Progress | None] = -1, None
        self._resumed: tuple[str, dict[str, Any]] | None = None

    def progress(self, step: int) -> tuple[str, dict[str, Any]] | None:
        """What a run resumed at this step must know to record what was recorded, in plain types.

        Under DDP it is one process's: where processes have tasks of different sizes, rounding may differ.
        """
        if self._recorder is None or self._resumed is not None:
            return self._resumed
        begun, progress = self._before
        # A step that is not done will be repeated.
        if progress is None or begun != step:
            progress = self._recorder.progress()
        return self._phase, self._recorder.printed(progress)

    def resume(self, progress: tuple[str, dict[str, Any]] | None) -> None:
        """Go on as the mapping whose ``progress()`` this is."""
        self._resumed = progress

    def gradients(
        self, meta: MetaParameters, batch: Episode, step: int = 0
    ) -> tuple[dict[str, Tensor], list[tuple[Tensor | None, TaskResult]]]:
        """Return the sum over tasks of their meta-gradients, and pieces of the tasks' reports with their indices.

        Args:
            meta: The meta-parameters.
            batch: The tasks.
            step: The number of the step, by which ``calls`` tells whether it is done.
        """
        totals: dict[str, Tensor] = {}
        reports = []
        state = self._start(step)
        workers = 1 if state is None else self._workers(batch)
        with self._prepared(batch):
            indices, pieces = zip(*self._pieces(batch, workers), strict=True)
            for sums, report in self._results(state, meta, pieces, workers):
                totals = {name: totals[name] + sums[name] for name in meta} if totals else sums
                reports.append(report)
        return totals, list(zip(indices, reports, strict=True))

    def _start(self, step: int) -> Hashable | None:
        """Return what recordings rest on, or None where nothing is recorded."""
        recorder = self._recorder
        if recorder is None:
            return None
        try:
            state = self._world.state()
        except OpenWorldError as error:
            self._under_guards = self._guarded is not None and not isinstance(error, ReplacedError)
            self._say_what_is_open(error)
            return None
        phase = repr(self._learner.training_phase())
        if self._resumed is not None:
            recorder.resume(self._resumed[1], same_phase=self._resumed[0] == phase)
        self._resumed = None
        progress = recorder.progress()
        self._before = step, progress if phase == self._phase else progress.of_another_phase()
        self._phase = phase
        return state

    def _say_what_is_open(self, error: OpenWorldError) -> None:
        if not self._told:
            message = f"Training steps are run by Python, because {error}"
            if self._under_guards:
                how = "compiled" if self._compiled else "recorded"
                message = f"Training steps are {how} under the guards of torch.compile, because {error}"
            elif not isinstance(error, ReplacedError):
                message += ': compile="record" records them under the guards of torch.compile'
            rank_zero_info(f"{message}.")
        self._told = True

    def _results(
        self, state: Hashable | None, meta: MetaParameters, pieces: Sequence[Episode], workers: int
    ) -> Iterator[tuple[dict[str, Tensor], TaskResult]]:
        if self._recorder is not None and state is not None:
            return self._recorder(state, meta, pieces, workers)
        function = self._guarded if self._guarded is not None and self._under_guards else self._eagerly
        return (function(meta, piece) for piece in pieces)

    def map(
        self, function: Callable[[MetaParameters, Episode], TaskResult], meta: MetaParameters, batch: Episode
    ) -> list[tuple[Tensor | None, TaskResult]]:
        """Apply a function of one task to each; return pieces of the results with the tasks' indices."""
        with self._prepared(batch), differentiable_attention():
            return [(indices, self._apply(function, meta, piece)) for indices, piece in self._pieces(batch)]

    def _workers(self, batch: Episode) -> int:
        """How many threads take pieces of the batch at the same time."""
        learner = self._learner
        if learner.task_chunk_size is not None or learner.draws or not (self._recorder and self._recorder.shares):
            return 1
        workers = fastest_workers(self._model_size, batch, torch.get_num_threads(), learner.inner_steps, self._compiled)
        return 1 if workers > 1 and drops(learner.model) else workers

    def _eagerly(self, meta: MetaParameters, piece: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        with differentiable_attention():
            return self._uncompiled(meta, piece)

    def _uncompiled(self, meta: MetaParameters, piece: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        if piece.num_tasks > 1 or self._own_gradient:
            return self._summed_gradients(meta, piece)
        # One task alone is fastest by an ordinary backward. Of several tasks at once it would be wrong: where vmap
        # takes a normalization's backward apart, ordinary autograd misses second derivatives.
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in meta.items()}
            loss, result = self._learner.task_loss(leaves, piece.select(0))
            if not loss.requires_grad:  # a loss that depends on no parameter
                loss = loss + 0 * sum(p.sum() for p in leaves.values())
            slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, slopes, strict=True)), tree_map(lambda leaf: leaf.detach()[None], result)

    def _summed_gradients(self, meta: MetaParameters, piece: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        gradients, result = self._apply(self._learner.task_gradient, meta, piece)
        return {name: gradient.sum(0) for name, gradient in gradients.items()}, result

    def _apply(self, function: Callable[..., Any], meta: MetaParameters, piece: Episode) -> Any:
        """Apply a per-task function to each task of a piece; results get a leading task dimension."""
        if piece.num_tasks == 1 or self._learner.task_chunk_size == 1:
            results = [function(meta, piece.select(i)) for i in range(piece.num_tasks)]
            return tree_map(lambda *leaves: torch.stack(leaves), *results)
        in_dims = tree_map(lambda leaf: None if leaf is None else 0, piece)
        return vmap(function, in_dims=(None, in_dims), randomness="different")(meta, piece)

    def _pieces(self, batch: Episode, workers: int = 1) -> Iterator[tuple[Tensor | None, Episode]]:
        learner = self._learner
        chunk_size = learner.task_chunk_size or fastest_chunk_size(self._model_size, batch, workers)
        if batch.support_mask is None and batch.query_mask is None:
            return split_by_chunk(batch, chunk_size)
        if chunk_size == 1 or not may_keep_padding(learner, batch):
            return split_by_size(batch, chunk_size)
        return split_by_chunk(fill_padding(batch), chunk_size)

    @contextmanager
    def _prepared(self, batch: Episode) -> Iterator[None]:
        """Around per-task functions: fitting threads, advice in errors."""
        keep_freed_memory()
        threads = torch.get_num_threads()
        tiny = self._learner.task_chunk_size is None and is_tiny(self._model_size, batch)
        tiny &= threading.current_thread() is threading.main_thread()  # the setting is the process's
        try:
            if tiny:
                torch.set_num_threads(1)
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                error.add_note(_OUT_OF_MEMORY)
            elif self._learner.task_chunk_size != 1:
                error.add_note(_CANNOT_VECTORIZE)
            raise
        finally:
            if tiny:
                torch.set_num_threads(threads)
