"""What each token tells about the answer: estimators, probes, views."""

from iapo_jax.information.estimators import ESTIMATORS, Probe

__all__ = [
    "ESTIMATORS",
    "Probe",
]
