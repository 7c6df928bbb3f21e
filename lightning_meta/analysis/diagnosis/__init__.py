"""Whether meta-learning is worth it on a learner's tasks, and what is missing."""
