"""Episodes of images."""
