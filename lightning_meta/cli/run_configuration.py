"""The configuration of a run of Weights & Biases: its values one by one, and its file as an artifact."""

import re
from typing import Any

from lightning.pytorch.loggers import WandbLogger

OF_SUBCOMMANDS = ("ckpt_path", "weights_only", "verbose", "return_predictions")
"""Arguments of single subcommands, which other subcommands do not take all."""


def log_configuration(logger: WandbLogger, text: str, values: dict[str, Any]) -> None:
    """Log the resolved configuration to a run.

    Args:
        logger: The run's logger.
        text: The configuration in YAML. It becomes the value ``config``, and the artifact ``config-RUN`` with the file
            ``config.yaml``, both without ``OF_SUBCOMMANDS``, so that ``--config`` of every subcommand takes it.
        values: The configuration as nested dictionaries and lists, logged one by one, see `flattened`.
    """
    import wandb

    text = for_every_subcommand(text)
    logger.log_hyperparams({"config": text, **flattened(values)})
    artifact = wandb.Artifact(f"config-{logger.experiment.id}", type="config")
    with artifact.new_file("config.yaml") as file:
        file.write(text)
    logger.experiment.log_artifact(artifact)


def for_every_subcommand(text: str) -> str:
    r"""Return a configuration in YAML without the arguments of single subcommands.

    Example:
        >>> for_every_subcommand("seed_everything: 0\nckpt_path: a long path that\n  is folded\nverbose: true\n")
        'seed_everything: 0\n'
    """
    return re.sub(rf"^({'|'.join(OF_SUBCOMMANDS)}):.*\n( .*\n)*", "", text, flags=re.MULTILINE)


def flattened(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of a configuration that are not None, each named as its flag: ``model.inner_lr``.

    Example:
        >>> flattened({"model": {"class_path": "MAML", "init_args": {"inner_lr": 0.1, "adapt": None}}})
        {'model.class_path': 'MAML', 'model.inner_lr': 0.1}
    """
    if isinstance(config, dict):
        parts = [
            flattened(value, prefix if name == "init_args" else f"{prefix}.{name}") for name, value in config.items()
        ]
        return {name: value for part in parts for name, value in part.items()}
    if isinstance(config, list):
        config = [value.get("class_path", str(value)) if isinstance(value, dict) else value for value in config]
    return {} if config is None else {prefix.removeprefix("."): config}
