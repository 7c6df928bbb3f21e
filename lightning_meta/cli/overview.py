"""What ``lightning-meta --help`` prints, on one screen."""

from collections.abc import Iterable
from difflib import get_close_matches

SUMMARIES = {
    "fit": "train a learner",
    "validate": "evaluate on the validation tasks",
    "test": "evaluate on the test tasks; print a table with intervals",
    "predict": "save the outputs on the test tasks",
    "adapt": "predict a file's rows from labelled examples in another file",
    "analyze": "choose hyper-parameters, certify results, find what is missing",
    "baselines": "compare a trained learner with simple baselines",
    "dashboard": "make a dashboard of a project's runs in Weights & Biases",
}

_OVERVIEW = """\
usage: lightning-meta COMMAND [--config FILE.yaml] [--KEY VALUE ...]

Meta-learning with PyTorch Lightning.

commands:
{commands}

examples:
  lightning-meta fit --config configs/sinusoid_maml.yaml --model.inner_steps 3
  lightning-meta test --config CONFIG --ckpt_path CHECKPOINT
  lightning-meta adapt --ckpt_path CHECKPOINT --support labelled.csv \\
      --query new.csv --output predictions.csv

more help:
  lightning-meta fit --help                    all flags of a command
  lightning-meta fit --model.help MAML         those of a learner
  lightning-meta fit --data.help SinusoidDataModule
  lightning-meta fit --config CONFIG --print_config
  lightning-meta --print_completion bash|zsh   completion with the Tab key
  lightning-meta --version
"""


def overview(commands: Iterable[str]) -> str:
    """Return the help text; it lists commands in the order given."""
    lines = [f"  {name:<10} {SUMMARIES[name]}" for name in commands]
    return _OVERVIEW.format(commands="\n".join(lines))


def unknown_command(given: str, commands: Iterable[str]) -> str:
    """Return the message about a command that does not exist, with the nearest one if there is one."""
    near = get_close_matches(given, list(commands), n=1)
    cure = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(commands)}"
    return f"lightning-meta: error: there is no command {given!r}: {cure}\n"
