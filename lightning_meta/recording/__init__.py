"""Recording what training computes for a piece of a batch, to repeat it without Python and autograd in between."""

from lightning_meta.recording.recorder import Recorder
from lightning_meta.recording.state import python_state

__all__ = ["Recorder", "python_state"]
