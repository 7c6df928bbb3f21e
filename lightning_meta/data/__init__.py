"""Data modules of episodes."""

from lightning_meta.data.base import TaskDataModule
from lightning_meta.data.episodes import EpisodeDataset
from lightning_meta.data.episodic import EpisodicDataModule, NWayDataModule
from lightning_meta.data.synthetic.sinusoid import SinusoidDataModule
from lightning_meta.data.tabular.physionet2012 import PhysioNet2012DataModule
from lightning_meta.data.tabular.sp500 import SP500DataModule
from lightning_meta.data.tabular.table_module import TableDataModule
from lightning_meta.data.tabular.tabular_tasks import TabularTasksDataModule
from lightning_meta.data.text.clinc150 import CLINC150DataModule
from lightning_meta.data.text.table import TextDataModule
from lightning_meta.data.vision.archives.cifar_fs import CIFARFSDataModule
from lightning_meta.data.vision.archives.fc100 import FC100DataModule
from lightning_meta.data.vision.archives.mini_imagenet import MiniImagenetDataModule
from lightning_meta.data.vision.archives.tiered_imagenet import TieredImagenetDataModule
from lightning_meta.data.vision.image_folder import ImageFolderDataModule
from lightning_meta.data.vision.omniglot import OmniglotDataModule

__all__ = [
    "CIFARFSDataModule",
    "CLINC150DataModule",
    "EpisodeDataset",
    "EpisodicDataModule",
    "FC100DataModule",
    "ImageFolderDataModule",
    "MiniImagenetDataModule",
    "NWayDataModule",
    "OmniglotDataModule",
    "PhysioNet2012DataModule",
    "SP500DataModule",
    "SinusoidDataModule",
    "TableDataModule",
    "TabularTasksDataModule",
    "TaskDataModule",
    "TextDataModule",
    "TieredImagenetDataModule",
]
