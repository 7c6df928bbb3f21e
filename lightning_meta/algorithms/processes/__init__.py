"""Learners whose networks map a support set to a predictive distribution, without an inner loop."""
