"""Learners that train on all training classes at once, without tasks, and are evaluated on tasks."""
