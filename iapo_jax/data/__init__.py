"""Datasets: rows, cleaning, prompts, problems and the order of batches."""
