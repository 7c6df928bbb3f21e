"""The base of the data modules of classified texts."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_meta import arguments
from lightning_meta.data.class_splits import check_class_fractions, split_classes
from lightning_meta.data.episodes import Split
from lightning_meta.data.episodic import NWayDataModule
from lightning_meta.data.labelled import TensorExamples
from lightning_meta.data.preparation import ClassTargets
from lightning_meta.data.text.preparation import TextPreparation
from lightning_meta.data.text.tokenizer import Tokenizer
from lightning_meta.data.text.vocabulary import Vocabulary, check_sizes
from lightning_meta.models import BagOfWords

_LONGEST = 512
_NAMED_CLASSES = 5


class ClassifiedTextDataModule(NWayDataModule):
    """Base of the data modules of classified texts; a derived class implements `texts`.

    Inputs are dictionaries of ``input_ids`` and ``attention_mask``, both ``[tasks, examples, max_length]`` of dtype
    int64, as models of Hugging Face name them. The mask is 1 for words and 0 for padding.

    Words are counted in the training classes alone, since the other classes stand for what is not known yet. A word
    is in lower case, without the punctuation around it; a punctuation mark is a word of its own.

    Args:
        text_column: The column of texts.
        label_column: The column of classes.
        val_classes: The fraction of classes for validation; 0: no validation.
        test_classes: The fraction of classes for test; 0: no test.
        max_length: Words of a text that are kept; None: enough for 99 % of the training texts, at most 512.
        vocabulary_size: The ids of words are less than this; the model needs as many rows.
        min_count: How often a word must occur in the training classes to have an id of its own.
        hash_buckets: How many of the ids are for other words, of which each has one by a hash of its letters; 0: they
            share a single id.
        tokenizer: The name or the folder of a tokenizer of Hugging Face, which then takes the place of the vocabulary,
            and of the three arguments before this; None: words.
        download: Whether to download the tokenizer if this computer lacks it.
        **options: As in `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    keeps_arguments = True

    def __init__(
        self,
        text_column: str = "text",
        label_column: str = "label",
        *,
        val_classes: float = 0.2,
        test_classes: float = 0.2,
        max_length: int | None = None,
        vocabulary_size: int = 4096,
        min_count: int = 2,
        hash_buckets: int = 1024,
        tokenizer: str | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_class_fractions(val_classes, test_classes)
        arguments.check_optional_count("max_length", max_length)
        check_sizes(vocabulary_size, hash_buckets)
        arguments.check_count("min_count", min_count)
        self.text_column = text_column
        self.label_column = label_column
        self.val_classes = val_classes
        self.test_classes = test_classes
        self.max_length = max_length
        self.vocabulary_size = vocabulary_size
        self.min_count = min_count
        self.hash_buckets = hash_buckets
        self.tokenizer = tokenizer
        self.download = download

    @abstractmethod
    def texts(self) -> Mapping[Split, pl.DataFrame | None]:
        """Return a table of each split, whose columns of texts and classes hold text; None: no such tasks.

        No class may be in two splits.
        """

    def prepare_data(self) -> None:
        """Download the tokenizer if asked; Lightning calls this in one process of each node."""
        if self.tokenizer is not None and self.download:
            Tokenizer.load(self.tokenizer, download=True)

    def datasets(self) -> dict[Split, TensorExamples | None]:
        """Return the texts of each split as ids, labelled by the class's position among the split's names."""
        tables = self.texts()
        kept = {split: None if rows is None else self._large_classes(split, rows) for split, rows in tables.items()}
        train = kept["train"]
        assert train is not None
        self.preparation = self._learn(train[self.text_column].to_list())
        self._check_model(self.preparation.vocabulary_size)
        datasets: dict[Split, TensorExamples | None] = {}
        for split, rows in kept.items():
            if rows is None:
                datasets[split] = None
                continue
            labels = np.unique(rows[self.label_column].to_numpy().astype(str), return_inverse=True)[1]
            datasets[split] = TensorExamples(self.preparation.inputs(rows), labels.astype(np.int64))
        return datasets

    def raw_features(self) -> BagOfWords:
        """Return what turns texts into word counts, ``[examples, ids]``."""
        self.setup("fit")
        assert isinstance(self.preparation, TextPreparation)
        return BagOfWords(self.preparation.vocabulary_size)

    def share_out(self, table: pl.DataFrame, groups: str) -> dict[Split, pl.DataFrame | None]:
        """Return the rows of each split if a column's values are shared out at random, always in the same way."""
        splits = split_classes(table[groups].to_list(), self.val_classes, self.test_classes)
        wanted = {"train": True, "val": self.val_classes > 0, "test": self.test_classes > 0}
        return {
            split: table.filter(pl.col(groups).is_in(names)) if wanted[split] else None
            for split, names in splits.items()
        }

    def _learn(self, texts: list[str]) -> TextPreparation:
        """Return the preparation that training texts determine."""
        encoder: Vocabulary | Tokenizer
        if self.tokenizer is None:
            encoder = Vocabulary.of_texts(texts, self.vocabulary_size, self.min_count, self.hash_buckets)
        else:
            encoder = Tokenizer.load(self.tokenizer)
        length = self.max_length
        if length is None:
            # The smallest length that suffices: percentiles between two texts' lengths would depend on rounding.
            longest = np.percentile(encoder.lengths(texts), 99, method="higher") if texts else 1
            length = max(1, min(_LONGEST, int(longest)))
        return TextPreparation(
            self.text_column,
            length,
            **encoder.state(),
            target_column=self.label_column,
            task_column=None,
            targets=ClassTargets(),
        )

    def _large_classes(self, split: Split, rows: pl.DataFrame) -> pl.DataFrame:
        """Leave out the classes with too few texts for a task, with a warning."""
        needed = self.shots + (self.query_shots if split == "train" else self.eval_query_shots)
        sizes = rows.group_by(self.label_column).len()
        small = sorted(sizes.filter(pl.col("len") < needed)[self.label_column].to_list())
        if not small:
            return rows
        named = ", ".join(map(repr, small[:_NAMED_CLASSES])) + (", ..." if len(small) > _NAMED_CLASSES else "")
        rank_zero_warn(
            f"{len(small)} of {len(sizes)} {split} classes are left out, as they have fewer than the {needed} texts "
            f"that shots and query_shots need: {named}"
        )
        return rows.filter(~pl.col(self.label_column).is_in(small))

    def _check_model(self, size: int) -> None:
        """Raise a ValueError if ids can be too large for the model that is trained."""
        model = getattr(getattr(self.trainer, "lightning_module", None), "model", None)
        rows = getattr(model, "vocabulary_size", None)
        if isinstance(rows, int) and rows < size:
            raise ValueError(
                f"the data module's ids of words go up to {size - 1}, and the model has vocabulary_size={rows}: set "
                f"the model's vocabulary_size={size}"
            )
