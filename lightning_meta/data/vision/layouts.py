"""Where the pictures of each split and class are: folders of classes, or tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import get_args

import polars as pl

from lightning_meta.data.episodes import Split
from lightning_meta.data.tables import check_columns
from lightning_meta.data.vision.decoding import is_picture
from lightning_meta.data.vision.file_tree import FileTree

SPLITS: tuple[Split, ...] = get_args(Split)

Classes = Mapping[str, Sequence[str]]
"""The names of the pictures of each class."""


def split_folders(tree: FileTree, prefix: str = "") -> dict[Split, Classes]:
    """Find ``train/<class>/*.png`` and so on; splits without a folder are left out.

    Raises:
        FileNotFoundError: If there is no folder ``train``.
        ValueError: If a folder has no classes, or a class no pictures.
    """
    there = [split for split in SPLITS if split in tree.folders(prefix)]
    if "train" not in there:
        raise FileNotFoundError(
            f"root={tree.shown('')} has no folder 'train': give it the folders train, val and test, with one folder of "
            "pictures for each class, or name a folder of tables with splits_dir"
        )
    return {split: class_folders(tree, _join(prefix, split)) for split in there}


def class_folders(tree: FileTree, folder: str, classes: Sequence[str] | None = None) -> Classes:
    """Find ``<class>/*.png`` in a folder.

    Args:
        tree: The files.
        folder: The folder of the classes.
        classes: The classes to find; None: all.

    Raises:
        ValueError: If there are no classes, or a class has no pictures.
    """
    found = {}
    for name in tree.folders(folder) if classes is None else classes:
        path = _join(folder, name)
        found[name] = [_join(path, file) for file in tree.files(path) if is_picture(file)]
        if not found[name]:
            raise ValueError(
                f"the class {name!r} has no pictures: there are none in {tree.shown(path)}; add some, or remove the "
                "class"
            )
    if not found:
        raise ValueError(f"{tree.shown(folder)} has no folders of classes: give it one folder of pictures per class")
    return found


def table_splits(tree: FileTree, tables: str, images: str) -> dict[Split, Classes]:
    """Read ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``filename`` and ``label``.

    Args:
        tree: The files.
        tables: The folder of the tables.
        images: The folder to which ``filename`` is relative.

    Raises:
        FileNotFoundError: If there is no ``train.csv``, or not a picture that a table names.
        ValueError: If a table is broken, names a picture twice, or a path that leads out of the folder.
    """
    names = {split: _join(tables, f"{split}.csv") for split in SPLITS}
    if not tree.has_file(names["train"]):
        raise FileNotFoundError(f"splits_dir: there is no file {tree.shown(names['train'])}")
    return {split: _classes_of(tree, name, images) for split, name in names.items() if tree.has_file(name)}


def check_relative(path: str, source: str) -> str:
    """Return a path of a table, with slashes; one that leads out of the table's folder raises a ValueError."""
    relative = PurePosixPath(path.replace("\\", "/"))
    if relative.is_absolute() or PureWindowsPath(path).drive or ".." in relative.parts:
        raise ValueError(f"{source} names {path!r}, which leads out of the folder of the pictures: use paths inside it")
    return relative.as_posix()


def _classes_of(tree: FileTree, name: str, images: str) -> Classes:
    try:  # as texts, since numbers would lose the zeros that they start with
        table = pl.read_csv(tree.read(name), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{tree.shown(name)} cannot be read as a table: {error}") from error
    check_columns(table, [("splits_dir: column", "filename"), ("splits_dir: column", "label")], tree.shown(name))
    if table.is_empty():
        raise ValueError(f"{tree.shown(name)} has no rows")
    if table["filename"].null_count() or table["label"].null_count():
        raise ValueError(f"{tree.shown(name)} has rows without a filename or label: fill them, or remove the rows")
    twice = table.filter(table["filename"].is_duplicated())["filename"]
    if len(twice):
        raise ValueError(f"{tree.shown(name)} names {twice[0]!r} twice: keep one of the rows")
    found: dict[str, list[str]] = {}
    for file, label in table.select("filename", "label").iter_rows():
        path = _join(images, check_relative(file, tree.shown(name)))
        if not tree.has_file(path):
            raise FileNotFoundError(f"{tree.shown(name)} names {file!r}, but there is no file {tree.shown(path)}")
        found.setdefault(label, []).append(path)
    return found


def _join(folder: str, name: str) -> str:
    return PurePosixPath(folder, name).as_posix()
