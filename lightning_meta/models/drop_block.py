"""DropBlock.

Paper: Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018, arXiv 1810.12890.

Dropout of single pixels does little in a convolutional network, as their neighbors carry the same information. So
squares of ``block_size`` pixels are dropped (algorithm 1), in each channel others. Their centers are drawn with
probability γ where a block fits into the picture; γ is chosen so that about the share p of all pixels is dropped
(equation 1), and the mask M scales what is kept so that the mean stays:

    γ = p / block_size² · height · width / ((height − block_size + 1)(width − block_size + 1)),
    y = x · M · count(M) / count_ones(M)

Differences from the paper:

- Blocks that overlap drop a little less than p, as in the paper; γ does not correct this.
- p is constant. The paper raises it linearly in training, and so do Lee et al. (2019) over 40,000 batches.
- A picture smaller than a block takes blocks of its own size, and so loses all of a channel or nothing.
- The mask is counted over one set of one task, so that tasks do not depend on each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_meta.arguments import check_count, check_fraction


class DropBlock2d(nn.modules.dropout._DropoutNd):
    """Drops squares of pixels in training (Ghiasi et al., 2018).

    Args:
        p: The share of pixels to drop, in [0, 1).
        block_size: Height and width of a square.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> DropBlock2d(0.1, block_size=3)(torch.ones(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, p: float = 0.1, block_size: int = 5) -> None:
        check_fraction("p", p)
        check_count("block_size", block_size)
        super().__init__(p)
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[examples, channels, height, width]`` with blocks of 0, and the rest scaled up."""
        if not self.training or self.p == 0:
            return x
        height, width = x.shape[-2:]
        size = min(self.block_size, height, width)
        rows, columns = height - size + 1, width - size + 1  # places for a block
        gamma = self.p * height * width / (size**2 * rows * columns)
        corners = torch.rand(*x.shape[:-2], rows, columns, device=x.device) < gamma
        covered = F.max_pool2d(F.pad(corners.float(), [size - 1] * 4), size, stride=1)  # [..., height, width]
        kept = covered == 0
        share = kept.to(torch.promote_types(x.dtype, torch.float32)).mean()
        scale = 1 / share.clamp(min=1 / kept.numel())  # finite if nothing is kept
        return torch.where(kept, x * scale.to(x.dtype), 0)

    def extra_repr(self) -> str:
        """Return the arguments, for printing."""
        return f"p={self.p}, block_size={self.block_size}"


def dropout(rate: float, block_size: int | None = None) -> nn.Module:
    """Return a dropout of pixels, or of blocks; without a rate a layer that does nothing, and draws no numbers.

    Raises:
        ValueError: If the rate, which models call ``drop_rate``, does not lie in [0, 1).
    """
    check_fraction("drop_rate", rate)
    if rate == 0:
        return nn.Identity()
    return nn.Dropout(rate) if block_size is None else DropBlock2d(rate, block_size)
