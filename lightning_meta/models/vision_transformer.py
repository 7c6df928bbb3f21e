"""A small vision transformer."""

import torch
from torch import Tensor, nn

from lightning_meta.arguments import check_count
from lightning_meta.models.head import make_head
from lightning_meta.models.sequence_encoder import SequenceEncoder

_SMALL = 0.02


class VisionTransformer(nn.Module):
    """A transformer of square patches, the mean of its outputs, and a linear head.

    Paper: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
    arXiv 2010.11929. In place of a class token it takes the mean over patches (appendix D.3). Each picture is computed
    by itself, so that the choice of batch statistics makes no difference. All derivatives exist, whatever torch's
    settings of attention are.

    Embeddings of positions are normal with standard deviation 0.02 at first; linear layers are initialized as torch
    does it.

    Args:
        num_classes: Outputs: the ways of the episodes, or for metric learners the size of the embedding; None: the
            mean vectors themselves, without a head.
        in_channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        patch_size: Height and width of a patch in pixels; it divides ``image_size``.
        embedding_size: Size of a patch's vector.
        depth: The number of blocks.
        heads: The number of heads of a block; it divides ``embedding_size``.
        hidden: Size of the layer between a block's linear ones; None: four times ``embedding_size``.
        drop_rate: The rate of dropout in training. Inner steps draw a new mask each.

    Raises:
        ValueError: If an argument is out of its range, or images have another size.

    Example:
        >>> import torch
        >>> VisionTransformer(num_classes=5, image_size=28, patch_size=7)(torch.rand(2, 3, 28, 28)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        num_classes: int | None = 5,
        in_channels: int = 3,
        image_size: int = 32,
        patch_size: int = 4,
        embedding_size: int = 128,
        depth: int = 4,
        heads: int = 4,
        hidden: int | None = None,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in {"in_channels": in_channels, "image_size": image_size, "patch_size": patch_size}.items():
            check_count(name, value)
        if image_size % patch_size:
            raise ValueError(f"patch_size={patch_size} must divide image_size={image_size}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.embedding_size = embedding_size
        self.depth = depth
        self.heads = heads
        self.hidden = hidden
        self.drop_rate = drop_rate
        self.encoder = SequenceEncoder(embedding_size, depth, heads, hidden, drop_rate)
        self.patches = nn.Conv2d(in_channels, embedding_size, patch_size, stride=patch_size)
        self.positions = nn.Parameter(_SMALL * torch.randn((image_size // patch_size) ** 2, embedding_size))
        self.head = make_head(embedding_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs ``[examples, num_classes]`` for images ``[examples, in_channels, height, width]``."""
        if x.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images of {x.shape[-2]} × {x.shape[-1]} pixels, and image_size={self.image_size}: set the model's "
                "image_size to the data module's"
            )
        patches = self.patches(x).flatten(2).mT  # [examples, patches, embedding_size]
        return self.head(self.encoder(patches + self.positions).mean(1))
