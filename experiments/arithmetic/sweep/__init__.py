"""The experiment: runs every method from the same model with the same budget, and measures it."""
