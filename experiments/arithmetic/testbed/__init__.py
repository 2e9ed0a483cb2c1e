"""The settings of the experiment: problems, worked reasoning of known categories, start models."""
