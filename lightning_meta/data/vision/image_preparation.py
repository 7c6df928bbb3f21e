"""`ImagePreparation`: how pictures in files become the tensors that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta import arguments
from lightning_meta.data.preparation import ClassTargets, Preparation, RealTargets
from lightning_meta.data.tables import check_columns, read_table
from lightning_meta.data.vision.decoding import MODES, Channels, is_picture
from lightning_meta.data.vision.file_tree import FolderTree
from lightning_meta.data.vision.layouts import check_relative, class_folders
from lightning_meta.data.vision.pixel_store import PictureFormat, load_pixels

_FILE, _PATH = "file", "picture path"
_LARGEST = 4096  # pixels in height and width


class ImagePreparation(Preparation):
    """Pictures of one size, normalized as ``(pixel / 255 - mean) / std``.

    Args:
        image_size: Height and width in pixels.
        channels: "rgb" or "grayscale".
        mean: The mean of each channel, where 0 is black and 1 is white.
        std: Their standard deviations.
        invert: Whether black becomes white before all else, as for drawings of ink 1 on paper 0.
        target_column: The column of the classes.
        task_column: As in `Preparation`; only tables have one.
        targets: As in `Preparation`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    kind = "images"
    private_columns = (_PATH,)

    def __init__(
        self,
        image_size: int,
        channels: Channels,
        mean: Sequence[float],
        std: Sequence[float],
        invert: bool = False,
        target_column: str = "class",
        task_column: str | None = None,
        targets: ClassTargets | RealTargets | None = None,
    ) -> None:
        super().__init__(target_column, task_column, ClassTargets() if targets is None else targets)
        if target_column in (_FILE, _PATH):
            raise ValueError(f"target_column={target_column!r} is the name of another column: rename it")
        check_format(image_size, channels, mean, std)
        self.picture_format = PictureFormat(image_size, channels)
        self.mean = tuple(map(float, mean))
        self.std = tuple(map(float, std))
        self.invert = bool(invert)

    def read(self, source: str | Path, labelled: bool) -> pl.DataFrame:
        """Find pictures in a folder, of one folder per class if labelled, or in a table with the column ``file``.

        Paths in a table are relative to the table's folder, and stay inside it; the column ``picture path`` has them
        with that folder. Pictures of a folder are sorted by name, classes too.
        """
        path = Path(source)
        if path.is_dir():
            return self._read_folder(path, labelled)
        kinds = "one folder of pictures for each class" if labelled else "pictures"
        cure = f"the checkpoint was trained on pictures: give a folder of {kinds}, or a table with the column 'file'"
        if not path.exists():
            raise FileNotFoundError(f"there is no folder or file {str(path)!r}: {cure}")
        if is_picture(path.name):
            raise ValueError(f"{str(path)!r} is a single picture: {cure}")
        try:
            named = [_FILE, self.target_column] + ([] if self.task_column is None else [self.task_column])
            table = read_table(path, texts=named)
        except ValueError as error:
            raise ValueError(f"{error}; {cure}") from error
        return self._read_files(table, path, labelled)

    def inputs(self, rows: pl.DataFrame) -> Tensor:
        """Return pictures ``[rows, channels, height, width]``."""
        files = rows[_PATH if _PATH in rows.columns else _FILE].to_list()
        return self.normalize(load_pixels(FolderTree(""), files, self.picture_format))

    def normalize(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Return the model's inputs for pixels ``[pictures, channels, height, width]``."""
        numbers = torch.from_numpy(255 - pixels if self.invert else pixels).to(torch.get_default_dtype())
        mean, std = (numbers.new_tensor(each).mul_(255)[:, None, None] for each in (self.mean, self.std))
        return numbers.sub_(mean).div_(std)

    def pixels_of(self, inputs: Tensor) -> NDArray[np.uint8]:
        """Return the pixels ``[pictures, channels, height, width]`` that `normalize` made these inputs of."""
        mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (self.mean, self.std))
        pixels = (inputs.double() * std + mean).nan_to_num().mul(255).round().clamp(0, 255).to(torch.uint8).numpy()
        return 255 - pixels if self.invert else pixels

    def _own_state(self) -> dict[str, Any]:
        size, channels = self.picture_format
        return {
            "image_size": size,
            "channels": channels,
            "mean": list(self.mean),
            "std": list(self.std),
            "invert": self.invert,
        }

    def _read_folder(self, folder: Path, labelled: bool) -> pl.DataFrame:
        tree = FolderTree(folder)
        if labelled:
            rows = [(str(folder / file), name) for name, files in class_folders(tree, "").items() for file in files]
            return pl.DataFrame(rows, schema=[_FILE, self.target_column], orient="row")
        files = [str(folder / file) for file in tree.files("") if is_picture(file)]
        if not files:
            inside = ", only folders: name one of them" if tree.folders("") else ""
            raise ValueError(f"{str(folder)!r} has no pictures{inside}")
        return pl.DataFrame({_FILE: files})

    def _read_files(self, table: pl.DataFrame, path: Path, labelled: bool) -> pl.DataFrame:
        if _FILE not in table.columns:
            raise ValueError(
                f"{str(path)!r} has no column {_FILE!r}: the checkpoint was trained on pictures, so give a folder of "
                f"pictures, or a table whose column {_FILE!r} names them"
            )
        if _PATH in table.columns:
            raise ValueError(f"{str(path)!r} has a column {_PATH!r}, a name that is used here: rename it")
        columns = [("target_column", self.target_column)] if labelled else []
        columns += [] if self.task_column is None else [("task_column", self.task_column)]
        check_columns(table, columns, path)
        names = table[_FILE].cast(pl.String).to_list()
        if None in names:
            raise ValueError(f"{str(path)!r} has a row without a file: name one, or remove the row")
        files = [path.parent / check_relative(name, repr(str(path))) for name in names]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{str(path)!r} names {str(file)!r}, which does not exist")
        return table.with_columns(pl.Series(_PATH, list(map(str, files))))


def check_format(image_size: Any, channels: Any, mean: Any, std: Any) -> None:
    """Raise a ValueError unless the arguments fit together; mean and std may both be None."""
    arguments.check_count("image_size", image_size)
    if image_size > _LARGEST:
        raise ValueError(f"image_size={image_size} must be at most {_LARGEST}")
    arguments.check_choice("channels", channels, Channels)
    if (mean is None) is not (std is None):
        raise ValueError(f"mean={mean!r} and std={std!r}: give both, or neither")
    count = MODES[channels][1]
    for name, values, check in (("mean", mean, arguments.check_nonnegative), ("std", std, arguments.check_rate)):
        if values is None:
            continue
        if not isinstance(values, list | tuple) or len(values) != count:
            raise ValueError(f"{name}={values!r} must be {count} number{'s' * (count > 1)}, one for each channel")
        for value in values:
            check(name, value)
