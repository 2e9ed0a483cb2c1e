"""Runs and evaluations as one page: `python -m iapo_jax.report` (`command.main`)."""
