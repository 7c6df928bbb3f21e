"""Weights of MAML++'s multi-step loss (Antoniou, Edwards, Storkey, 2019, section 4.1)."""


def multi_step_weights(steps: int, epoch: int, epochs: int) -> list[float]:
    """Return the weight of the query loss after each of 0, 1, ..., ``steps`` inner steps.

    All steps start at ``1/steps``. Over ``epochs`` epochs the weight moves to the last step, while the others keep at
    least ``0.03/steps``; then only the last step has a weight. The query loss before adaptation has none.

    Args:
        steps: The number of inner steps, K.
        epoch: The current epoch, from 0.
        epochs: The number of epochs with a multi-step loss.

    Example:
        >>> multi_step_weights(2, epoch=0, epochs=4), multi_step_weights(2, epoch=4, epochs=4)
        ([0.0, 0.5, 0.5], [0.0, 0.0, 1.0])
    """
    if epoch >= epochs:
        return [0.0] * steps + [1.0]
    decay = epoch / (steps * epochs)
    early = max(1 / steps - decay, 0.03 / steps)
    last = min(1 / steps + decay * (steps - 1), 1 - (steps - 1) * 0.03 / steps)
    return [0.0] + [early] * (steps - 1) + [last]
