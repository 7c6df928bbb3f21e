"""How per-task functions are applied to a batch of tasks."""
