"""Training: losses, data and loops."""
