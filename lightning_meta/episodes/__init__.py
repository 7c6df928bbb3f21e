"""Episodes, what a learner reports about them, and the pytrees of tensors that both consist of."""

from lightning_meta.episodes.episode import Episode, Support, collate_episodes, joined_sets
from lightning_meta.episodes.task_result import MetaParameters, TaskResult, merge_results

__all__ = ["Episode", "MetaParameters", "Support", "TaskResult", "collate_episodes", "joined_sets", "merge_results"]
