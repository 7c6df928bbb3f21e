"""The preparation that a checkpoint keeps."""

from lightning_meta.checkpoints.checked_io import Source, read_checkpoint
from lightning_meta.checkpoints.content import shortened
from lightning_meta.data.preparation import Preparation
from lightning_meta.data.tabular.table_preparation import TablePreparation
from lightning_meta.data.text.preparation import TextPreparation
from lightning_meta.data.vision.image_preparation import ImagePreparation

KINDS: dict[str, type[Preparation]] = {cls.kind: cls for cls in (TablePreparation, TextPreparation, ImagePreparation)}


def preparation_of(ckpt_path: Source) -> Preparation:
    """Return the preparation of the data that a checkpoint's learner was trained on.

    Raises:
        ValueError: If the checkpoint has none, or one that cannot be used.
    """
    state = read_checkpoint(ckpt_path, "cpu").get("meta_learner_preparation")
    if state is None:
        raise ValueError(
            f"{shortened(str(ckpt_path))!r} does not say how files become tensors: train with a data module for files "
            "(TabularTasksDataModule, TextDataModule, ImageFolderDataModule), or adapt with learner.adapt(x, y)"
        )
    cls = KINDS.get(str(state.get("kind")))
    if cls is None:
        raise ValueError(f"the checkpoint's data are of kind {shortened(state.get('kind'))}: known are {list(KINDS)}")
    return cls.from_state(state)
