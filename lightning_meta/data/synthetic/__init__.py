"""Episodes drawn from a formula."""
