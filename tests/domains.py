"""Small files in the layouts of the publishers whose data the configurations name."""

from __future__ import annotations

import io
import zipfile
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from tests.data.text.look_alikes import write_clinc150


def write_clinc(root: Path) -> None:
    """CLINC150: 10 domains of 3 intents with 27 sentences."""
    write_clinc150(root, each=9)


def write_physionet(root: Path, parameter: str = "GCS", patients: int = 40) -> None:
    """PhysioNet 2012: patients with measurements before and after hour 25."""
    random = np.random.default_rng(0)
    with zipfile.ZipFile(root / "set-a.zip", "w") as archive:
        for record in range(patients):
            lines = [f"{hour:02}:00,{parameter},{random.integers(3, 15)}" for hour in range(2, 46, 4)]
            archive.writestr(f"set-a/{1000 + record}.txt", "Time,Parameter,Value\n" + "\n".join(lines) + "\n")


def write_parkinsons(root: Path) -> None:
    """Parkinson's telemonitoring: twenty subjects with forty recordings."""
    random = np.random.default_rng(0)
    voice = [
        *("Jitter(%)", "Jitter(Abs)", "Jitter:RAP", "Jitter:PPQ5", "Jitter:DDP", "Shimmer", "Shimmer(dB)"),
        *("Shimmer:APQ3", "Shimmer:APQ5", "Shimmer:APQ11", "Shimmer:DDA", "NHR", "HNR", "RPDE", "DFA", "PPE"),
    ]
    rows = 20 * 40
    columns = {"subject#": np.repeat(np.arange(1, 21), 40), "age": np.repeat(np.arange(50, 70), 40)}
    columns |= {"sex": np.zeros(rows, int), "test_time": np.tile(np.arange(40) * 4.5, 20)}
    columns |= {name: random.normal(20, 5, rows) for name in ("motor_UPDRS", "total_UPDRS", *voice)}
    pl.DataFrame(columns).write_csv(root / "parkinsons_updrs.data")


def write_sp500(root: Path) -> None:
    """S&P 500: twenty shares with a price for each day of the five years."""
    random = np.random.default_rng(0)
    days = [date(2013, 2, 8) + timedelta(days=day) for day in range(1825)]
    folder = root / "individual_stocks_5yr"
    folder.mkdir()
    for number in range(20):
        close = 50 * np.exp(np.cumsum(random.normal(0, 0.01, len(days))))
        prices = {"open": close, "high": 1.01 * close, "low": 0.99 * close, "close": close}
        table = pl.DataFrame({"date": days, **prices, "volume": random.integers(1000, 9000, len(days))})
        table.with_columns(Name=pl.lit(f"S{number}")).write_csv(folder / f"S{number}_data.csv")


def write_cifarfs(root: Path) -> None:
    """CIFAR-FS: 64, 16 and 20 classes of 16 pictures of 4 × 4 pixels."""
    random = np.random.default_rng(0)
    names = {"train": 64, "val": 16, "test": 20}
    with zipfile.ZipFile(root / "cifar100.zip", "w") as archive:
        for split, classes in names.items():
            archive.writestr(
                f"cifar100/splits/bertinetto/{split}.txt", "\n".join(f"{split}_{n}" for n in range(classes))
            )
            for number in range(16 * classes):
                file = io.BytesIO()
                Image.fromarray(random.integers(256, size=(4, 4, 3), dtype=np.uint8)).save(file, "PNG")
                archive.writestr(f"cifar100/data/{split}_{number // 16}/{number}.png", file.getvalue())


WRITERS = {
    "cifarfs": write_cifarfs,
    "clinc150": write_clinc,
    "physionet": write_physionet,
    "parkinsons": write_parkinsons,
    "sp500": write_sp500,
}
