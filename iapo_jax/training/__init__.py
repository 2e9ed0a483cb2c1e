"""One training step and what is around it: set-up, update, checkpoints, run directory."""
