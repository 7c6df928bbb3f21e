"""Solvers for inner problems: conjugate gradients, proximal problems, ridge regression, Stein variational descent."""
