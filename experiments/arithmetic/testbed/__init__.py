"""The settings of the experiment: problems, reasoning of known categories, initial models."""
