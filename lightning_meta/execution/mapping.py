"""Applying per-task functions to a batch of tasks: vectorized, in pieces, one by one, captured or compiled."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_map

from lightning_meta.episodes import Episode, MetaParameters, TaskResult
from lightning_meta.episodes.trees import leaves_of
from lightning_meta.execution.attention import differentiable_attention
from lightning_meta.execution.capture import ClosedWorld, Guarded, OpenWorldError, Progress, Recorder, ReplacedError
from lightning_meta.execution.host_memory import keep_freed_memory
from lightning_meta.execution.options import Execution
from lightning_meta.execution.plan import ModelSize, Plan, cut, plan

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
_MOST_PLANS = 64

LossFunction = Callable[[MetaParameters, Episode], tuple[Tensor, TaskResult]]
GradientFunction = Callable[[MetaParameters, Episode], tuple[dict[str, Tensor], TaskResult]]
ReportFunction = Callable[[MetaParameters, Episode], TaskResult]
Reports = list[tuple[Tensor | None, TaskResult]]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's or the host's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Traits(NamedTuple):
    """What decides how a batch is computed, besides its shapes."""

    execution: Execution  # the user's choices
    inner_steps: int
    is_stochastic: bool  # whether random numbers are drawn, which threads would take in any order
    may_keep_padding: Callable[[Episode], bool]  # whether masks suffice to compute each task as it would be alone
    phase: Hashable = None  # what per-task functions depend on that changes with the trainer's progress


class TaskMapping:
    """Applies per-task functions to batches of tasks.

    Args:
        model: The model that they call.
        loss: Returns one task's meta-loss and its report.
        gradient: Returns one task's meta-gradient and its report.
        own_gradient: Whether the meta-gradient is not the derivative of the loss.
        world: Everything that the functions read.
    """

    def __init__(
        self, model: nn.Module, loss: LossFunction, gradient: GradientFunction, own_gradient: bool, world: ClosedWorld
    ) -> None:
        self._model_size = ModelSize.of(model)
        self._loss = loss
        self._gradient = gradient
        self._own_gradient = own_gradient
        self._world = world
        self._execution: Execution | None = None
        self._recorder: Recorder | None = None
        self._guarded: Guarded | None = None
        self._plans: dict[Hashable, Plan] = {}
        self._under_guards = False
        self._logged = False
        self._phase = ""
        self._before: tuple[int, Progress | None] = -1, None
        self._resumed: tuple[str, dict[str, Any]] | None = None

    def progress(self, step: int) -> tuple[str, dict[str, Any]] | None:
        """Return what a run resumed at this step needs to capture the same steps, in plain types.

        Under DDP it is one process's: where processes have tasks of different sizes, rounding may differ.
        """
        if self._recorder is None or self._resumed is not None:
            return self._resumed
        begun, progress = self._before
        if progress is None or begun != step:  # else the step is not done, and the resumed run takes it again
            progress = self._recorder.progress()
        return self._phase, self._recorder.printed(progress)

    def resume(self, progress: tuple[str, dict[str, Any]] | None) -> None:
        """Continue as the mapping whose ``progress()`` this is."""
        self._resumed = progress

    def gradients(
        self, meta: MetaParameters, batch: Episode, traits: Traits, step: int = 0
    ) -> tuple[dict[str, Tensor], Reports]:
        """Return the sum over tasks of their meta-gradients, and pieces of the tasks' reports with their indices.

        By the step's number `progress` knows whether it is done.
        """
        totals: dict[str, Tensor] = {}
        reports = []
        self._follow(traits.execution)
        state, recorder = self._start(traits, step), self._recorder
        can_share = state is not None and recorder is not None and recorder.shares
        way = self._plan(batch, traits, can_share and not traits.is_stochastic)
        with self._prepared(traits.execution, way):
            indices, pieces = zip(*cut(batch, way.chunk_size, traits.may_keep_padding), strict=True)
            if recorder is not None and state is not None:
                results = recorder(state, meta, pieces, way.workers)
            else:
                function = self._guarded if self._guarded is not None and self._under_guards else self._eagerly
                results = (function(meta, piece) for piece in pieces)
            for sums, report in results:
                totals = {name: totals[name] + sums[name] for name in meta} if totals else sums
                reports.append(report)
        return totals, list(zip(indices, reports, strict=True))

    def map(self, function: ReportFunction, meta: MetaParameters, batch: Episode, traits: Traits) -> Reports:
        """Apply a function of one task to each; return pieces of the results with the tasks' indices."""
        way, vectorizes = self._plan(batch, traits, shared_out=False), traits.execution.vectorizes
        with self._prepared(traits.execution, way), differentiable_attention():
            pieces = cut(batch, way.chunk_size, traits.may_keep_padding)
            return [(own, _apply(function, meta, piece, vectorizes)) for own, piece in pieces]

    def _follow(self, execution: Execution) -> None:
        """Start over where the user has changed how training steps are run."""
        if execution == self._execution:
            return
        self._execution = execution
        compiled = execution.compile is True
        self._recorder = self._guarded = None
        if execution.compile is not False:
            self._recorder = Recorder(self._summed_gradients, self._eagerly, self._world.state, compiled)
        if execution.compile:
            self._guarded = Guarded(self._summed_gradients, self._eagerly, compiled)
        self._before = -1, None

    def _start(self, traits: Traits, step: int) -> Hashable | None:
        """Return the state that captured steps depend on, or None where none are captured."""
        recorder = self._recorder
        if recorder is None:
            return None
        try:
            state = self._world.state()
        except OpenWorldError as error:
            self._under_guards = self._guarded is not None and not isinstance(error, ReplacedError)
            if not self._logged:
                way, cure = "run by Python", ""
                if self._under_guards:
                    way = "compiled" if traits.execution.compile is True else "recorded"
                    way += " under the guards of torch.compile"
                elif not isinstance(error, ReplacedError):
                    cure = ': compile="record" records them under the guards of torch.compile'
                rank_zero_info(f"Training steps are {way}, because {error}{cure}.")
            self._logged = True
            return None
        phase = repr(traits.phase)
        if self._resumed is not None:
            recorder.resume(self._resumed[1], same_phase=self._resumed[0] == phase)
        self._resumed = None
        progress = recorder.progress()
        self._before = step, progress if phase == self._phase else progress.of_another_phase()
        self._phase = phase
        return state

    @differentiable_attention()
    def _eagerly(self, meta: MetaParameters, piece: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        if piece.num_tasks > 1 or self._own_gradient:
            return self._summed_gradients(meta, piece)
        # An ordinary backward is fastest for one task alone. For several at once it would be wrong: where vmap
        # decomposes a normalization's backward, ordinary autograd misses second derivatives.
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in meta.items()}
            loss, result = self._loss(leaves, piece.select(0))
            if not loss.requires_grad:  # a loss that depends on no parameter
                loss = loss + 0 * sum(p.sum() for p in leaves.values())
            slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, slopes, strict=True)), tree_map(lambda leaf: leaf.detach()[None], result)  # [1, ...]

    def _summed_gradients(self, meta: MetaParameters, piece: Episode) -> tuple[dict[str, Tensor], TaskResult]:
        vectorizes = self._execution is None or self._execution.vectorizes
        gradients, result = _apply(self._gradient, meta, piece, vectorizes)
        return {name: gradient.sum(0) for name, gradient in gradients.items()}, result  # each [tasks, ...] to [...]

    def _plan(self, batch: Episode, traits: Traits, shared_out: bool) -> Plan:
        """Return the plan for batches of this shape, made once."""
        threads = torch.get_num_threads()
        shapes = [(leaf.shape, leaf.device.type) for leaf in leaves_of((batch.support_x, batch.query_x))]
        key = (traits.execution, traits.inner_steps, threads, shared_out, *shapes)
        way = self._plans.get(key)  # other threads may clear them meanwhile
        if way is None:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            way = plan(self._model_size, batch, traits.execution, threads, traits.inner_steps, shared_out)
            self._plans[key] = way
        return way

    @contextmanager
    def _prepared(self, execution: Execution, way: Plan) -> Iterator[None]:
        """Set the threads for per-task functions inside the block, and add advice to their errors."""
        keep_freed_memory()
        threads = torch.get_num_threads()  # of the whole process, so only the main thread changes it
        single = way.single_thread and threading.current_thread() is threading.main_thread()
        try:
            if single:
                torch.set_num_threads(1)
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                error.add_note(_OUT_OF_MEMORY)
            elif execution.vectorizes:
                error.add_note(_CANNOT_VECTORIZE)
            raise
        finally:
            if single:
                torch.set_num_threads(threads)


def _apply(function: Callable[..., Any], meta: MetaParameters, piece: Episode, vectorizes: bool) -> Any:
    """Apply a per-task function to each task of a piece; results get a leading task dimension."""
    if piece.num_tasks == 1 or not vectorizes:
        results = [function(meta, piece.select(i)) for i in range(piece.num_tasks)]
        return tree_map(lambda *leaves: torch.stack(leaves), *results)  # [tasks, ...]
    in_dims = tree_map(lambda leaf: None if leaf is None else 0, piece)
    return vmap(function, in_dims=(None, in_dims), randomness="different")(meta, piece)
