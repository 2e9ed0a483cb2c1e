"""Sampling a data set to its end, and the metrics with their intervals."""
