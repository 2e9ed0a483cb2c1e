"""Chooses the point of a method's grid that runs again, on the selection split only."""

from collections.abc import Sequence

import numpy as np

from iapo_jax.evaluation import intervals
from sweep.records import Result

TOLERANCE = 0.02
"""How far a point's accuracy may be below the method's best."""


def choose(results: Sequence[Result], tolerance: float = TOLERANCE) -> Result:
    """The shortest result whose accuracy is within `tolerance` of the best of the grid.

    The rule is the same for every method: accuracy first, then length. Accuracy per token would
    choose models that answer at once.
    """
    size = len(results[0].outcomes["select"].correct)
    return results[int(_places(results, np.ones((1, size)), tolerance)[0])]


def stability(results: Sequence[Result]) -> list[float]:
    """The share of resamples of the selection problems in which each point would be chosen."""
    size = len(results[0].outcomes["select"].correct)
    places = _places(results, intervals.resample(size).problems)
    return [float((places == i).mean()) for i in range(len(results))]


def _places(
    results: Sequence[Result], weights: np.ndarray, tolerance: float = TOLERANCE
) -> np.ndarray:
    """The index [R] of the chosen point under each row of weights [R, P]."""
    found = [one.outcomes["select"] for one in results]
    accuracy, length = (
        weights
        @ np.stack([getattr(o, name).mean(1) for o in found]).T
        / weights.sum(1, keepdims=True)
        for name in ("correct", "length")
    )
    allowed = accuracy >= accuracy.max(1, keepdims=True) - tolerance - 1e-9
    # Among equally short points, the most accurate one.
    return np.where(allowed, length - 1e-6 * accuracy, np.inf).argmin(1)
