"""The information that each token carries about the answer: estimators, probes, views."""

from iapo_jax.information.estimators import (
    ESTIMATORS,
    Probe,
    answer_entropy,
    answer_log_prob,
    answer_set_entropy,
    set_entropy,
)
from iapo_jax.information.probe_positions import choose_positions, every_prefix, interpolate
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.types import ProbePositions, informativeness

__all__ = [
    "ESTIMATORS",
    "Probe",
    "ProbePositions",
    "answer_entropy",
    "answer_log_prob",
    "answer_set_entropy",
    "choose_positions",
    "compute_signals",
    "every_prefix",
    "informativeness",
    "interpolate",
    "make_groups",
    "set_entropy",
]
