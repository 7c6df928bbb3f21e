"""Data modules of episodes."""

from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.data.episodic import EpisodicDataModule
from lightning_meta.data.synthetic.sinusoid import SinusoidDataModule
from lightning_meta.data.vision.omniglot import OmniglotDataModule

__all__ = ["EpisodeDataset", "EpisodicDataModule", "OmniglotDataModule", "SinusoidDataModule", "TaskDataModule"]
