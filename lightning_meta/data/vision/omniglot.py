"""Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015): 1623 handwritten characters, 20 drawings of each."""

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from lightning_meta import arguments
from lightning_meta.data.episodes import Split
from lightning_meta.data.episodic import NWayDataModule
from lightning_meta.data.vision.image_preparation import ImagePreparation
from lightning_meta.data.vision.omniglot_files import IMAGE_SIZE, OmniglotImages, load_omniglot

CharacterSplit = Literal["vinyals", "lake"]

_TRAIN_AND_VAL = 1200
_VAL = 100


class OmniglotDataModule(NWayDataModule):
    """N-way K-shot tasks over Omniglot, images ``[tasks, examples, 1, 28, 28]`` with paper 0 and ink 1.

    Args:
        root: The folder with ``images_background.zip`` and ``images_evaluation.zip``, or the folders extracted
            from them.
        query_shots: Query examples per class in training.
        eval_query_shots: Query examples per class in validation and test; None: as in training.
        train_tasks: Tasks in a training epoch, over all processes.
        character_split: "vinyals": 1100 characters to train on, 100 to validate and 423 to test, drawn at random
            from all alphabets, always the same (the 1200/423 split of Vinyals et al., 2016). "lake": the
            publishers' split by alphabets, 864 background characters to train on, 100 to validate, and the
            659 of the evaluation alphabets to test.
        rotations: Whether training characters turned by 90, 180 and 270 degrees are classes of their own.
        download: Whether to download what ``root`` lacks.
        cache_dir: Where the decoded images are kept (25 MB); None: in ``root``.
        **options: As in `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range, or the files are broken.
        FileNotFoundError: If ``root`` or the files are not there and ``download`` is False.

    Example:
        >>> data = OmniglotDataModule("data/omniglot", ways=20, shots=1, download=True)  # the trainer loads the files
    """

    keeps_arguments = True

    def __init__(
        self,
        root: str,
        *,
        query_shots: int = 5,
        eval_query_shots: int | None = 15,
        train_tasks: int = 8_000,
        character_split: CharacterSplit = "vinyals",
        rotations: bool = True,
        download: bool = False,
        cache_dir: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(query_shots=query_shots, eval_query_shots=eval_query_shots, train_tasks=train_tasks, **options)
        arguments.check_choice("character_split", character_split, CharacterSplit)
        self.root = Path(root)
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.download = download
        self.character_split: CharacterSplit = character_split
        self.rotations = rotations

    def prepare_data(self) -> None:
        """Download if asked, decode, and write the cache; Lightning calls this in one process of each node."""
        load_omniglot(self.root, self.cache_dir, self.download)

    def datasets(self) -> dict[Split, TensorDataset]:
        """Return the drawings of each split's characters, labelled by the character's position in the split."""
        loaded = load_omniglot(self.root, self.cache_dir)
        # As the drawings are read: paper 0 and ink 1, from 0 to 1.
        self.preparation = ImagePreparation(IMAGE_SIZE, "grayscale", mean=[0.0], std=[1.0], invert=True)
        datasets: dict[Split, TensorDataset] = {}
        for split, characters in split_characters(loaded, self.character_split).items():
            images = loaded.images[torch.from_numpy(characters)]  # [characters, drawings, 28, 28]
            if split == "train" and self.rotations:
                images = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(4)])
            labels = torch.arange(images.shape[0]).repeat_interleave(images.shape[1])
            # Kept as floats, 250 MB for training: converting at every episode would cost more than making it.
            pixels = images.flatten(0, 1).unsqueeze(1).float().div_(255)  # [characters * drawings, 1, 28, 28]
            datasets[split] = TensorDataset(pixels, labels)
        return datasets


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
