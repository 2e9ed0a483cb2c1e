"""The training step, its set-up, updates and metrics, checkpoints, and the run directory."""
