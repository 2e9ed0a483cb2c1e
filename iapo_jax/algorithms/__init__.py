"""Credit rules and what stands around them: pure functions of one group."""

from iapo_jax.algorithms.methods import ALGORITHMS, Algorithm, make_algorithm

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "make_algorithm",
]
