"""Small tables in which a task is a group of rows."""

from __future__ import annotations

import numpy as np
import polars as pl


def patients(groups: int = 20, least: int = 8, most: int = 14) -> pl.DataFrame:
    """Rows numbered in ``row``, in random order; ``level`` is linear in ``dose``, with lines of their own."""
    random = np.random.default_rng(0)
    rows = []
    for group in range(groups):
        slope, offset = random.normal(size=2)
        for day in range(random.integers(least, most + 1)):
            dose = random.normal()
            ward = "north" if random.random() < 0.5 else "south"
            rows.append((f"p{group}", 1.5 * day, dose, ward, 5 + slope * dose + offset))
    table = pl.DataFrame(rows, schema=["patient", "day", "dose", "ward", "level"], orient="row")
    return table.sample(fraction=1.0, shuffle=True, seed=0).with_row_index("row")
