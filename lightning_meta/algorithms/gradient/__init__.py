"""Learners that adapt by gradient descent."""
