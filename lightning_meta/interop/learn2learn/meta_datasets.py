"""learn2learn's ``MetaDataset`` and our labelled examples."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate

from lightning_meta.data.labelled import Examples, labels_of
from lightning_meta.interop.learn2learn.package import learn2learn


class MetaDatasetExamples(Examples):
    """The examples of a ``MetaDataset``, for `EpisodicDataModule`; its classes are numbered in the order of its labels.

    Args:
        meta_dataset: The data set, also a filtered one or a union; labels may be of any type.
    """

    def __init__(self, meta_dataset: Any) -> None:
        self.meta_dataset = meta_dataset
        self.class_names = [str(label) for label in meta_dataset.labels]
        number = {label: i for i, label in enumerate(meta_dataset.labels)}
        of_example = meta_dataset.indices_to_labels
        self.labels = np.array([number[of_example[i]] for i in range(len(meta_dataset))], dtype=np.int64)

    def inputs(self, numbers: NDArray[np.int64]) -> Any:
        """Return the inputs of examples ``[numbers]``, batched as torch's default collation does."""
        return default_collate([self.meta_dataset[int(i)][0] for i in numbers])


def meta_dataset_from(dataset: Dataset[Any]) -> Any:
    """Return labelled examples as learn2learn's ``MetaDataset``.

    Args:
        dataset: As in `EpisodicDataModule`. Labels are read as there, so that examples need not be loaded.

    Raises:
        ValueError: If an example has no integer label.
        ImportError: If learn2learn is not installed.
    """
    labels = dict(enumerate(labels_of(dataset).tolist()))
    return learn2learn("meta_dataset_from").data.MetaDataset(dataset, indices_to_labels=labels)
