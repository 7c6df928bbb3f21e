"""Losses as likelihoods, predictive distributions, and observation noise."""

from lightning_meta.likelihoods.losses import LossFunction
from lightning_meta.likelihoods.predictive import Likelihood, Prediction, Samples

__all__ = ["Likelihood", "LossFunction", "Prediction", "Samples"]
