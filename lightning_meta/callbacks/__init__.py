"""Callbacks that draw pictures of a test."""

from lightning_meta.callbacks.posterior_bands import PosteriorBands, draw_band
from lightning_meta.callbacks.reliability_diagram import ReliabilityDiagram

__all__ = ["PosteriorBands", "ReliabilityDiagram", "draw_band"]
