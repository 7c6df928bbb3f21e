"""``python -m lightning_meta`` is the command line."""

from lightning_meta.cli import main

if __name__ == "__main__":
    main()
