"""What offline runs of Weights & Biases hold, read from their files."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

_BLOCK = 32 * 1024
_PATIENCE = 30.0  # seconds
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@contextmanager
def without_connection(folder: Path) -> Iterator[None]:
    """Weights & Biases offline, with its files in a folder; nothing stays behind for later tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        for name in ("DATA", "CACHE", "CONFIG"):
            patch.setenv(f"WANDB_{name}_DIR", str(folder))
        try:
            yield
        finally:
            wandb.finish()
            wandb.teardown()


def without_drawing(patch: pytest.MonkeyPatch) -> None:
    """Leave out the drawing of pictures, which takes most of a dashboard's time; they become black."""
    black = np.zeros((2, 2, 3), dtype=np.uint8)
    patch.setattr("lightning_meta.callbacks.episode_dashboard.rendered", lambda figure: black)


@dataclass
class OfflineRun:
    """A run.

    Attributes:
        history: The rows that were logged, each a dictionary of values.
        summary: The last summary of each key.
        config: The run's configuration.
        metrics: For each defined metric its step metric, and the names of the values that the summary keeps.
        artifacts: By name their type and, by the names of their files, the paths of these on this computer.
        files: The folder of media files.
    """

    files: Path
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, tuple[str, set[str]]] = field(default_factory=dict)
    artifacts: dict[str, tuple[str, dict[str, str]]] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """The keys that were logged."""
        return {key for row in self.history for key in row if not key.startswith("_")}

    def last(self, key: str) -> Any:
        """Return the value that was logged last under a key."""
        return next(row[key] for row in reversed(self.history) if key in row)

    def table(self, key: str) -> dict[str, Any]:
        """Return the table that was logged last under a key, with ``columns`` and ``data``."""
        return json.loads(Path(self._files_of_table(key)[f"{key}.table.json"]).read_text())

    def picture(self, key: str, cell: dict[str, Any]) -> Path:
        """Return the file of a picture in that table."""
        return Path(self._files_of_table(key)[cell["path"]])

    def _files_of_table(self, key: str) -> dict[str, str]:
        return next(files for _, files in self.artifacts.values() if f"{key}.table.json" in files)


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Read all offline runs below a folder in the order of their start, in seconds; they must be finished."""
    return [
        _read(path) for path in sorted(folder.rglob("offline-run-*/run-*.wandb"), key=lambda path: path.parent.name)
    ]


def _read(path: Path) -> OfflineRun:
    run = OfflineRun(path.parent / "files")
    names: list[str] = []
    for record in _complete(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            run.history.append(_values(record.history.item))
        elif kind == "summary":
            for key, value in _values(record.summary.update).items():
                both = isinstance(value, dict) and isinstance(run.summary.get(key), dict)
                run.summary[key] = run.summary[key] | value if both else value
        elif kind in ("config", "run"):
            config = record.config if kind == "config" else record.run.config
            run.config |= _values(config.update)
        elif kind == "metric":
            metric = record.metric
            names.append(metric.name or metric.glob_name)
            step = metric.step_metric or (names[metric.step_metric_index - 1] if metric.step_metric_index else "")
            kept = {field.name for field, value in metric.summary.ListFields() if value is True}
            run.metrics[names[-1]] = (step, kept)
        elif kind == "artifact" or (kind == "request" and record.request.HasField("log_artifact")):
            artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
            contents = {entry.path: entry.local_path for entry in artifact.manifest.contents}
            run.artifacts[artifact.name] = (artifact.type, contents)
    return run


def _complete(path: Path) -> list[Record]:
    """Return the records of a finished run, whose last ones are written after `wandb.finish` returns."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        records = [Record.FromString(data) for data in _records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.02)
    raise TimeoutError(f"{path} has no end")


def _values(items: Any) -> dict[str, Any]:
    """The values of a record's items; those of nested keys are in dictionaries."""
    values: dict[str, Any] = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        within = values
        for part in outer:
            within = within.setdefault(part, {})
        within[name] = json.loads(item.value_json)
    return values


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file in the format of LevelDB's logs, after its header of seven bytes."""
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < 7:  # padding
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part = data[position + 7 : position + 7 + length]
        if len(part) < length:  # not yet written
            return
        position += 7 + length
        if kind in (_FULL, _FIRST):
            parts = b""
        parts += part
        if kind in (_FULL, _LAST):
            yield parts
