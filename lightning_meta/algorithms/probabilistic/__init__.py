"""Learners of a task's posterior."""
