"""The experiment: runs, chooses and measures every method from one model with one budget."""
