"""An inner optimizer's state that is carried from batch to batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class KeptState(nn.Module):
    """Holds an update rule's state as buffers, which are saved in checkpoints and moved between devices.

    Args:
        initial: The state before the first step, a pytree of tensors.
    """

    steps: Tensor

    def __init__(self, initial: Any) -> None:
        super().__init__()
        leaves, self._form = tree_flatten(initial)
        for index, leaf in enumerate(leaves):
            self.register_buffer(f"leaf_{index}", leaf.detach().clone())
        self.register_buffer("steps", torch.tensor(0))

    def state(self) -> Any:
        """Return the state in the update rule's own form."""
        return tree_unflatten([self.get_buffer(f"leaf_{i}") for i in range(self._form.num_leaves)], self._form)

    def keep(self, states: Any, steps: int) -> None:
        """Carry the mean of the tasks' states over all processes.

        Args:
            states: The tasks' final states, every leaf ``[tasks, ...]``.
            steps: The number of steps that the tasks took.
        """
        for index, leaf in enumerate(tree_leaves(states)):
            mean = leaf.detach().mean(0)
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(mean)
                mean /= dist.get_world_size()
            self.get_buffer(f"leaf_{index}").copy_(mean)
        self.steps += steps
