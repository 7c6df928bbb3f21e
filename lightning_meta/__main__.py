"""``python -m lightning_meta`` is the command line."""

import sys

from lightning_meta.cli import command

if __name__ == "__main__":
    sys.argv[0] = "lightning-meta"  # the name in help texts
    command()
