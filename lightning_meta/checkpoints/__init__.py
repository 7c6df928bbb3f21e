"""Writing and reading checkpoints, whose content is data and never runs code."""
