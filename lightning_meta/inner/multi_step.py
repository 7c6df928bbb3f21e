"""Weights of MAML++'s multi-step loss (Antoniou, Edwards, Storkey, 2019, section 4.1)."""

from __future__ import annotations


def multi_step_weights(steps: int, epoch: int, epochs: int) -> list[float]:
    """Return the weight of the query loss after each of 0, 1, ..., ``steps`` inner steps.

    At first all steps weigh ``1/steps``; over ``epochs`` epochs the weight moves to the last step, the others
    keeping at least ``0.03/steps``; from then on the last step counts alone. The query loss before adaptation
    never counts.

    Args:
        steps: The number of inner steps, K.
        epoch: The current epoch, from 0.
        epochs: For how many epochs the loss is multi-step; 0 for never.
    """
    if epoch >= epochs:
        return [0.0] * steps + [1.0]
    decay = epoch / (steps * epochs)
    early = max(1 / steps - decay, 0.03 / steps)
    last = min(1 / steps + decay * (steps - 1), 1 - (steps - 1) * 0.03 / steps)
    return [0.0] + [early] * (steps - 1) + [last]
