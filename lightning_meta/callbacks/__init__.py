"""Callbacks that show what a learner does with tasks."""

from lightning_meta.callbacks.episode_dashboard import EpisodeDashboard
from lightning_meta.callbacks.posterior_bands import PosteriorBands, draw_band
from lightning_meta.callbacks.reliability_diagram import ReliabilityDiagram

__all__ = ["EpisodeDashboard", "PosteriorBands", "ReliabilityDiagram", "draw_band"]
