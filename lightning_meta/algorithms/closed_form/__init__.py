"""Algorithms that solve a task's head exactly: in closed form, or as a convex problem."""
