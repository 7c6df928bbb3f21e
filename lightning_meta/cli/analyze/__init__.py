"""``lightning-meta analyze``: a file for each analysis."""

from lightning_meta.cli.analyze.command import analyze_command

__all__ = ["analyze_command"]
