"""Small tables of texts, and files like CLINC150's."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

INTENTS = tuple(f"intent{number}" for number in range(10))
OPTIONS = {"ways": 2, "shots": 1, "query_shots": 2, "train_tasks": 8, "val_tasks": 4, "test_tasks": 4}


def requests(each: int = 6, intents: tuple[str, ...] = INTENTS) -> pl.DataFrame:
    """A table of texts with a word of their intent's and one of their own."""
    rows = [(f"please do {intent}word now {n}", intent) for intent in intents for n in range(each)]
    return pl.DataFrame(rows, schema=["text", "label"], orient="row")


def write_requests(path: Path, table: pl.DataFrame | None = None) -> str:
    """Write a table in the format of the path's ending."""
    table = requests() if table is None else table
    {".csv": table.write_csv, ".parquet": table.write_parquet, ".json": table.write_json}[path.suffix](path)
    return str(path)


def write_clinc150(root: Path, domains: int = 10, intents: int = 3, each: int = 2) -> None:
    """Write the publishers' two files, with ``each`` sentences of an intent in each of the three parts."""
    names = {f"domain{d}": [f"intent_{d}_{i}" for i in range(intents)] for d in range(domains)}
    flat = [intent for of_domain in names.values() for intent in of_domain]
    content = {
        part: [[f"{part} sentence {n} of {intent}", intent] for intent in flat for n in range(each)]
        for part in ("train", "val", "test")
    }
    content |= {f"oos_{part}": [["nothing of this", "oos"]] for part in ("train", "val", "test")}
    (root / "data_full.json").write_text(json.dumps(content))
    (root / "domains.json").write_text(json.dumps(names))
