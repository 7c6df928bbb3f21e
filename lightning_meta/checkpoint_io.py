"""Reading checkpoints with an error that says what is wrong with the file."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's own way to read and write checkpoints, which refuses files that are not whole."""

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; arguments as in Lightning's.

        Raises:
            RuntimeError: If a local file was cut short: the end of the archive is its directory.
        """
        if Path(path).is_file() and not zipfile.is_zipfile(path):
            raise RuntimeError(f"{path} cannot be read: it was cut short or is no checkpoint; take an earlier one")
        return super().load_checkpoint(path, *args, **kwargs)
