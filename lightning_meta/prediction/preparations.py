"""The preparation that a checkpoint keeps."""

from collections.abc import Mapping
from typing import Any

from lightning_meta.checkpoints.content import shortened
from lightning_meta.data.preparation import Preparation
from lightning_meta.data.tabular.table_preparation import TablePreparation
from lightning_meta.data.text.preparation import TextPreparation
from lightning_meta.data.vision.image_preparation import ImagePreparation

KINDS: dict[str, type[Preparation]] = {cls.kind: cls for cls in (TablePreparation, TextPreparation, ImagePreparation)}


def preparation_of(state: Mapping[str, Any] | None) -> Preparation:
    """Return the preparation that a checkpoint keeps, as `Preparation.state` returned it.

    Raises:
        ValueError: If there is none, or one that cannot be used.
    """
    if state is None:
        raise ValueError(
            "the checkpoint does not say how files become tensors: train with a data module for files "
            "(TabularTasksDataModule, TextDataModule, ImageFolderDataModule), or adapt with learner.adapt(x, y)"
        )
    cls = KINDS.get(str(state.get("kind")))
    if cls is None:
        raise ValueError(f"the checkpoint's data are of kind {shortened(state.get('kind'))}: known are {list(KINDS)}")
    return cls.from_state(state)
