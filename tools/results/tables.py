"""The tables of the page of results, as `settings.yaml` says."""

from pathlib import Path
from typing import Any

import yaml


def tables() -> list[dict[str, Any]]:
    """Return the tables: ``title``, ``text``, ``metric``, and ``configurations`` by name."""
    return yaml.safe_load((Path(__file__).parent / "settings.yaml").read_text())
