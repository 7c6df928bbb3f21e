"""Predictions for examples in files, by a learner from a checkpoint."""

from lightning_meta.prediction.predictor import AdaptedTasks, FewShotPredictor

__all__ = ["AdaptedTasks", "FewShotPredictor"]
