"""CLINC150 (Larson et al., EMNLP 2019): 150 intents of requests to an assistant, 150 sentences each, in 10 domains."""

import json
from pathlib import Path
from typing import Any, Literal

import polars as pl

from lightning_meta import arguments
from lightning_meta.data.episodes import Split
from lightning_meta.data.text.base import ClassifiedTextDataModule

SplitBy = Literal["intent", "domain"]

_SENTENCES, _DOMAINS = "data_full.json", "domains.json"
_PARTS = ("train", "val", "test")


class CLINC150DataModule(ClassifiedTextDataModule):
    """N-way K-shot tasks over the intents of CLINC150 (Larson et al., EMNLP 2019, CC BY 3.0).

    An intent has the sentences of all three of the publishers' parts, 150; the out-of-scope sentences are left out.

    Args:
        root: The folder with ``data_full.json`` and ``domains.json`` of https://github.com/clinc/oos-eval.
        split_by: "intent": 90 intents to train on, 30 to validate and 30 to test, drawn at random, always the same.
            "domain": the intents of 6, 2 and 2 of the 10 domains, which is harder. Both by the default fractions.
        **options: As in `ClassifiedTextDataModule`, `NWayDataModule` and `TaskDataModule`.

    Raises:
        ValueError: If an argument is out of its range; in `setup` if the files are not the publishers'.
        FileNotFoundError: In `setup`, if a file is missing.

    Example:
        >>> data = CLINC150DataModule("data/clinc150", ways=5, shots=1)  # the trainer reads the files
    """

    def __init__(self, root: str, *, split_by: SplitBy = "intent", **options: Any) -> None:
        super().__init__(text_column="text", label_column="intent", **options)
        arguments.check_choice("split_by", split_by, SplitBy)
        self.root = Path(root)
        self.split_by: SplitBy = split_by

    def texts(self) -> dict[Split, pl.DataFrame | None]:
        """Return the sentences of each split."""
        domain_of = {intent: domain for domain, intents in self._domains().items() for intent in intents}
        rows = self._sentences()
        unknown = sorted({intent for _, intent in rows if intent not in domain_of})
        if unknown:
            raise ValueError(f"{_DOMAINS} in {str(self.root)!r} names no domain of the intent {unknown[0]!r}")
        table = pl.DataFrame(rows, schema=["text", "intent"], orient="row")
        if self.split_by == "intent":
            return self.share_out(table, "intent")
        return self.share_out(table.with_columns(domain=pl.col("intent").replace_strict(domain_of)), "domain")

    def _sentences(self) -> list[tuple[str, str]]:
        content = self._json(_SENTENCES)
        try:
            return [(str(text), str(intent)) for part in _PARTS for text, intent in content[part]]
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{_SENTENCES} in {str(self.root)!r} is not the publishers': {error!r}") from error

    def _domains(self) -> dict[str, list[str]]:
        content = self._json(_DOMAINS)
        if not isinstance(content, dict) or not all(isinstance(intents, list) for intents in content.values()):
            raise ValueError(f"{_DOMAINS} in {str(self.root)!r} is not the publishers': it holds no lists of intents")
        return content

    def _json(self, name: str) -> Any:
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(
                f"root={str(self.root)!r} has no {name}: put data_full.json and domains.json of "
                "https://github.com/clinc/oos-eval there"
            )
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name} in {str(self.root)!r} is no JSON file: {error}") from error
