"""Sampling a dataset to its end, and the metrics with their intervals."""
