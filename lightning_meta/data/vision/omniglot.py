"""Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015): 1623 handwritten characters, 20 drawings of each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_meta import arguments
from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import Split
from lightning_meta.data.episodic import check_task_form
from lightning_meta.data.labelled import ClassEpisodes, FetchTensor
from lightning_meta.data.vision.omniglot_files import OmniglotImages, load_omniglot

CharacterSplit = Literal["vinyals", "lake"]

_TRAIN_AND_VAL = 1200
_VAL = 100


class OmniglotDataModule(TaskDataModule):
    """N-way K-shot tasks over Omniglot, images ``[tasks, examples, 1, 28, 28]`` with paper 0 and ink 1.

    Args:
        root: The folder with ``images_background.zip`` and ``images_evaluation.zip``, or the folders extracted
            from them.
        ways: Classes in a task.
        shots: Support examples per class.
        query_shots: Query examples per class in training.
        tasks_per_batch: Tasks in a meta-batch, per process.
        eval_query_shots: Query examples per class in validation and test; None: as in training.
        character_split: "vinyals": 1100 characters to train on, 100 to validate and 423 to test, drawn at random
            from all alphabets, always the same (the 1200/423 split of Vinyals et al., 2016). "lake": the
            publishers' split by alphabets, 864 background characters to train on, 100 to validate, and the
            659 of the evaluation alphabets to test.
        rotations: Whether training characters turned by 90, 180 and 270 degrees are classes of their own.
        download: Whether to download what ``root`` lacks.
        cache_dir: Where the decoded images are kept (25 MB); None: in ``root``.
        eval_outside_ways: Classes outside each validation and test task, whose examples measure how well
            uncertainty tells them from the task's own.
        train_tasks: Tasks in a training epoch.
        val_tasks: Validation tasks.
        test_tasks: Test and prediction tasks.
        seed: Which tasks.
        num_workers: Processes that make episodes.
        pin_memory: Whether to pin host memory.

    Raises:
        ValueError: If an argument is out of its range, or the files are broken.
        FileNotFoundError: If ``root`` or the files are not there and ``download`` is False.
    """

    def __init__(
        self,
        root: str,
        ways: int = 5,
        shots: int = 1,
        query_shots: int = 5,
        tasks_per_batch: int = 16,
        eval_query_shots: int | None = 15,
        character_split: CharacterSplit = "vinyals",
        rotations: bool = True,
        download: bool = False,
        cache_dir: str | None = None,
        train_tasks: int = 8_000,
        val_tasks: int = 600,
        test_tasks: int = 600,
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        eval_outside_ways: int = 0,
    ) -> None:
        super().__init__(tasks_per_batch, train_tasks, val_tasks, test_tasks, seed, num_workers, pin_memory)
        check_task_form(ways, shots, query_shots, eval_query_shots)
        arguments.check_count("eval_outside_ways", eval_outside_ways, least=0)
        arguments.check_choice("character_split", character_split, CharacterSplit)
        self.save_hyperparameters()
        self.root = Path(root)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.download = download
        self.character_split: CharacterSplit = character_split
        self.rotations = rotations
        self.ways, self.shots, self.eval_outside_ways = ways, shots, eval_outside_ways
        self.query_shots: dict[Split, int] = {
            "train": query_shots,
            "val": eval_query_shots or query_shots,
            "test": eval_query_shots or query_shots,
        }
        self._episodes: dict[Split, ClassEpisodes] = {}

    def prepare_data(self) -> None:
        """Download if asked, decode, and write the cache; Lightning calls this in one process of each node."""
        load_omniglot(self.root, self.cache_dir, self.download)

    def setup(self, stage: str) -> None:
        """Load the images, split the characters, and check that tasks can be drawn from every split."""
        if self._episodes:
            return
        loaded = load_omniglot(self.root, self.cache_dir)
        for split, characters in split_characters(loaded, self.character_split).items():
            images = loaded.images[torch.from_numpy(characters)]
            if split == "train" and self.rotations:
                images = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
            # Kept as floats, 250 MB for training: converting at every episode would cost more than making it.
            self._episodes[split] = self._make_episodes(split, images.unsqueeze(2).float().div_(255))

    def episodes(self, split: Split) -> ClassEpisodes:
        """Return the tasks of a split."""
        self.setup("fit")
        return self._episodes[split]

    def _make_episodes(self, split: Split, images: Tensor) -> ClassEpisodes:
        labels = np.arange(len(images)).repeat(images.shape[1])
        fetch = FetchTensor(images.flatten(0, 1))
        tasks, query_shots = self.num_tasks[split], self.query_shots[split]
        outside = 0 if split == "train" else self.eval_outside_ways
        return ClassEpisodes(labels, fetch, self.ways, self.shots, query_shots, split, tasks, self.seed, outside)


def split_characters(loaded: OmniglotImages, character_split: CharacterSplit) -> dict[Split, NDArray[np.int64]]:
    """Return the characters of each split, by their position in ``loaded``.

    Characters are put into random order by a digest of their names, which no version of any library changes.
    """
    order = np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in loaded.names])
    if character_split == "vinyals":
        train_and_val, test = order[:_TRAIN_AND_VAL], order[_TRAIN_AND_VAL:]
    else:
        background = np.array([loaded.names[i].startswith("images_background") for i in order])
        train_and_val, test = order[background], order[~background]
    return {"train": train_and_val[_VAL:], "val": train_and_val[:_VAL], "test": test}
