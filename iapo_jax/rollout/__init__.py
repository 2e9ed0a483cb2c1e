"""Samples completions on the devices, and rewards them on the host."""
