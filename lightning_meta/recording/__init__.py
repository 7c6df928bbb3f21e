"""Recording what training computes for a piece of a batch, to repeat it without Python and autograd in between."""

from lightning_meta.recording.closed_world import ClosedWorld, OpenWorldError, ReplacedError
from lightning_meta.recording.guarded import Guarded
from lightning_meta.recording.recorder import Progress, Recorder

__all__ = ["ClosedWorld", "Guarded", "OpenWorldError", "Progress", "Recorder", "ReplacedError"]
