"""Sampling on the devices, rewards on the host."""
