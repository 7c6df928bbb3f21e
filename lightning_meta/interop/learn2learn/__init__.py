"""Exchange with learn2learn 0.2.0, which is imported only by what needs it."""

from lightning_meta.interop.learn2learn.benchmarks import get_tasksets
from lightning_meta.interop.learn2learn.meta_datasets import MetaDatasetExamples, meta_dataset_from
from lightning_meta.interop.learn2learn.splitting import join_task, split_task
from lightning_meta.interop.learn2learn.tasksets import EpisodeTasks, TasksetDataModule, TasksetEpisodes, episodes_from
from lightning_meta.interop.learn2learn.wrappers import FeaturesAndHead, from_learn2learn, to_learn2learn

__all__ = [
    "EpisodeTasks",
    "FeaturesAndHead",
    "MetaDatasetExamples",
    "TasksetDataModule",
    "TasksetEpisodes",
    "episodes_from",
    "from_learn2learn",
    "get_tasksets",
    "join_task",
    "meta_dataset_from",
    "split_task",
    "to_learn2learn",
]
