"""Runs the shipped configurations, keeps what they reach in ``results/``, and writes the page of results."""
