"""``python -m lightning_meta`` is the command line."""

from lightning_meta.cli import command

if __name__ == "__main__":
    command()
