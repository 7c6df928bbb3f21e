"""The configuration of a run of Weights & Biases: its values one by one, and its file as an artifact."""

from typing import Any

from lightning.pytorch.loggers import WandbLogger


def log_configuration(logger: WandbLogger, text: str, values: dict[str, Any]) -> None:
    """Log the resolved configuration to a run.

    Args:
        logger: The run's logger.
        text: The configuration in YAML. It becomes the value ``config``, and the artifact ``config-RUN`` with the file
            ``config.yaml``, which ``lightning-meta fit --config`` takes.
        values: The configuration as nested dictionaries and lists, logged one by one, see `flattened`.
    """
    import wandb

    logger.log_hyperparams({"config": text, **flattened(values)})
    artifact = wandb.Artifact(f"config-{logger.experiment.id}", type="config")
    with artifact.new_file("config.yaml") as file:
        file.write(text)
    logger.experiment.log_artifact(artifact)


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
