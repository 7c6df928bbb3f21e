"""PhysioNet 2012 (Silva et al., Computing in Cardiology 2012): measurements of 4,000 patients in intensive care."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from lightning_meta import arguments
from lightning_meta.data.tabular.table_module import TableDataModule

_PARAMETERS = (
    *("ALP", "ALT", "AST", "Albumin", "BUN", "Bilirubin", "Cholesterol", "Creatinine", "DiasABP", "FiO2", "GCS"),
    *("Glucose", "HCO3", "HCT", "HR", "K", "Lactate", "MAP", "MechVent", "Mg", "NIDiasABP", "NIMAP", "NISysABP", "Na"),
    *("PaCO2", "PaO2", "Platelets", "RespRate", "SaO2", "SysABP", "Temp", "TroponinI", "TroponinT", "Urine", "WBC"),
    "pH",
)
_HOURS = 48


class PhysioNet2012DataModule(TableDataModule):
    """Regression of a measurement on time, a patient of set A per task: ``[tasks, hours, 1]``.

    The protocol of PACOH (Rothfuss et al., ICML 2021, arXiv:2002.05551), as in the authors' published code: values
    are averaged over whole hours from 0 to 47; the support set holds hours 0 to 24 and has at least four values, the
    query set all later ones. Patients are ordered by record number: the first 100 with four values or more are for
    training; those for test come from the end, those for validation before them. Results are root mean squared errors
    in the measurement's units, averaged over test patients. Inputs and targets are standardized.

    Differences: in training, the authors' MAML adapts to the first half of a patient's values and is evaluated on the
    rest; here the support set ends after a value drawn at random for each task. Validation and test have 500 patients
    each, as in one version of their code; another has 30.

    Args:
        root: The folder with ``set-a.zip``, or the folder ``set-a`` extracted from it.
        parameter: What is measured, such as "GCS" (Glasgow coma scale, 3 to 15), "HCT" (hematocrit, %) or "HR" (heart
            rate, 1/min).
        train_patients: Training patients; None: all that are for neither validation nor test.
        val_patients: Validation patients.
        test_patients: Test patients.
        shots: The least number of support values, and of values of a training patient in all.
        split_hour: The first hour of the query set.
        random_split_time: Whether in training the support set ends at a random value instead of at ``split_hour``. If
            not, training patients with too few values on one side of it are left out, with a warning.
        **options: As in `TableDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or a file is broken.
        FileNotFoundError: If ``root`` has neither file nor folder, when the data are read.

    Example:
        >>> data = PhysioNet2012DataModule("data/physionet2012", parameter="HCT", tasks_per_batch=4)
    """

    keeps_arguments = True

    def __init__(
        self,
        root: str,
        parameter: str = "GCS",
        train_patients: int | None = 100,
        val_patients: int = 500,
        test_patients: int = 500,
        shots: int = 4,
        split_hour: int = 25,
        random_split_time: bool = True,
        **options: Any,
    ) -> None:
        root = str(root)  # checkpoints keep this argument, and hold no paths
        super().__init__(
            source=root,
            task_column="patient",
            target_column=parameter,
            feature_columns=("hour",),
            time_column="hour",
            split_column="split",
            shots=shots,
            split_time=split_hour,
            random_split_time=random_split_time,
            **options,
        )
        if parameter not in _PARAMETERS:
            close = difflib.get_close_matches(str(parameter), _PARAMETERS, n=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"parameter={parameter!r} is not measured: {guess}use one of {', '.join(_PARAMETERS)}")
        arguments.check_optional_count("train_patients", train_patients)
        arguments.check_count("val_patients", val_patients, least=0)
        arguments.check_count("test_patients", test_patients, least=0)
        arguments.check_count("split_hour", split_hour)
        self.root = Path(root)
        self.parameter = parameter
        self.train_patients = train_patients
        self.val_patients = val_patients
        self.test_patients = test_patients

    def table(self) -> pl.DataFrame:
        """Return hourly means with the columns patient, hour, the parameter, and split."""
        rows = [
            (record, *_hour_and_value(line, record))
            for record, text in _records(self.root)
            for line in text.splitlines()
            if f",{self.parameter}," in line
        ]
        schema = {"patient": pl.String, "hour": pl.Int64, self.parameter: pl.Float64}
        measured = pl.DataFrame(rows, schema=schema, orient="row").filter(pl.col("hour") < _HOURS)
        hourly = measured.group_by("patient", "hour").agg(pl.col(self.parameter).mean()).sort("patient", "hour")
        return hourly.join(self._splits(hourly), on="patient")

    def _splits(self, hourly: pl.DataFrame) -> pl.DataFrame:
        """Return the patients that are used, with their split."""
        before = (pl.col("hour") < self.split_time).sum()
        patients = hourly.group_by("patient").agg(values=pl.len(), before=before).sort("patient")
        enough = patients.filter(pl.col("values") >= self.shots)["patient"].to_list()
        evaluable = patients.filter((pl.col("before") >= self.shots) & (pl.col("values") > pl.col("before")))
        reserved = set(enough[: self.train_patients or 0])
        held_out = [name for name in reversed(evaluable["patient"].to_list()) if name not in reserved]
        test, rest = held_out[: self.test_patients], held_out[self.test_patients :]
        val = rest[: self.val_patients]
        train = [name for name in enough if name not in {*val, *test}][: self.train_patients]
        names = {"train": train, "val": val, "test": test}
        pairs = [(name, split) for split, own in names.items() for name in own]
        return pl.DataFrame(pairs, schema={"patient": pl.String, "split": pl.String}, orient="row")


def _records(root: Path) -> Iterator[tuple[str, str]]:
    """Yield record numbers and texts of set A."""
    folder, archive = root / "set-a", root / "set-a.zip"
    if folder.is_dir():
        for path in sorted(folder.glob("*.txt")):
            yield path.stem, path.read_text()
    elif archive.is_file():
        try:
            with zipfile.ZipFile(archive) as files:
                for name in sorted(files.namelist()):
                    if name.endswith(".txt"):
                        yield Path(name).stem, files.read(name).decode()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{str(archive)!r} is broken ({error}): download it again") from error
    else:
        raise FileNotFoundError(
            f"there is neither {str(archive)!r} nor the folder set-a beside it: download it from "
            "https://physionet.org/content/challenge-2012/1.0.0/"
        )


def _hour_and_value(line: str, record: str) -> tuple[int, float]:
    """Return the hour and the value of a line such as ``07:37,GCS,15``."""
    try:
        time, _, value = line.split(",")
        return int(time.split(":")[0]), float(value)
    except ValueError as error:
        raise ValueError(f"record {record} holds the line {line!r}, which is not time,parameter,value") from error
