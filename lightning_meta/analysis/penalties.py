"""Penalties to choose from."""

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""The penalties of ridge and logistic regression from which validation tasks choose."""
