"""N-way tasks from a table with one labelled example in each row."""

import polars as pl
from torch.utils.data import TensorDataset

from lightning_meta.data import NWayDataModule


class ClassesOfTable(NWayDataModule):
    """The classes of a CSV file, split in the order of their names: 60 % train, 20 % validate, the others test.

    Args:
        file: The CSV file.
        label_column: The column with the class; all others are numbers.
        **options: As in `NWayDataModule`.
    """

    def __init__(self, file: str, label_column: str = "label", **options):
        super().__init__(**options)
        self.file = file
        self.label_column = label_column

    def datasets(self) -> dict:
        """Return the examples of each split."""
        table = pl.read_csv(self.file)
        names = table[self.label_column].unique().sort().to_list()
        first, second = int(0.6 * len(names)), int(0.8 * len(names))
        splits = {"train": names[:first], "val": names[first:second], "test": names[second:]}
        return {split: self._examples(table, classes) for split, classes in splits.items()}

    def _examples(self, table: pl.DataFrame, classes: list) -> TensorDataset:
        rows = table.filter(pl.col(self.label_column).is_in(classes))
        numbers = {name: number for number, name in enumerate(classes)}
        labels = rows[self.label_column].replace_strict(numbers, return_dtype=pl.Int64)
        return TensorDataset(rows.drop(self.label_column).to_torch(dtype=pl.Float32), labels.to_torch())
