"""Capturing what training computes for a piece of a batch, to replay it without Python and autograd in between."""

from lightning_meta.execution.capture.closed_world import ClosedWorld
from lightning_meta.execution.capture.guarded import Guarded
from lightning_meta.execution.capture.recorder import Progress, Recorder
from lightning_meta.execution.capture.trust import OpenWorldError, ReplacedError

__all__ = ["ClosedWorld", "Guarded", "OpenWorldError", "Progress", "Recorder", "ReplacedError"]
