"""The tables of the page of results, as `settings.yaml` says, and the runs that fill them."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent


@cache
def tables() -> list[dict[str, Any]]:
    """Return the tables: ``title``, ``text``, ``metric``, and ``configurations`` by name."""
    return yaml.safe_load((Path(__file__).parent / "settings.yaml").read_text())


@cache
def budgets(budget: str) -> dict[str, list[str]]:
    """Return the arguments beside the configuration by its name, in the order in which they are run."""
    entries = {name: entry for table in tables() for name, entry in table["configurations"].items()}
    if budget == "shipped":
        return {name: [] for name in entries}
    return {name: [str(a) for a in e["paper_budget"]] for name, e in entries.items() if "paper_budget" in e}


def configuration_bytes(name: str, arguments: list[str]) -> bytes:
    """Return what makes a run: the bytes of the configuration file and of the further arguments."""
    return (ROOT / "configs" / f"{name}.yaml").read_bytes() + " ".join(arguments).encode()
