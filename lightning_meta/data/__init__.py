"""Data modules of episodes."""

from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.data.episodic import EpisodicDataModule
from lightning_meta.data.omniglot import OmniglotDataModule
from lightning_meta.data.sinusoid import SinusoidDataModule

__all__ = ["EpisodeDataset", "EpisodicDataModule", "OmniglotDataModule", "SinusoidDataModule", "TaskDataModule"]
