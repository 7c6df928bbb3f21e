"""The last layer of models that also serve as embeddings."""

from torch import nn

from lightning_meta.arguments import check_optional_count


def make_head(features: int, num_classes: int | None) -> nn.Module:
    """Return a linear layer from features to classes; without classes one that returns the features themselves.

    Raises:
        ValueError: If there is not at least one class.
    """
    check_optional_count("num_classes", num_classes)
    return nn.Identity() if num_classes is None else nn.Linear(features, num_classes)
