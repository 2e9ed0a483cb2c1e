"""The experiment: every method from the same start, with the same budget, chosen and measured."""
