"""Learners that compare queries with support examples."""
