"""Estimates with 95% intervals, by a bootstrap over problems and training seeds.

A resample draws problems with replacement, and every problem keeps all of its samples. Two models
are compared on the same resampled problems, which pairs their difference. Where a model has S
training seeds, their mean also moves, by its standard error times a draw of Student's t. The
only module that imports scipy.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.evaluation.metrics import Terms

RESAMPLES = 2000


class Estimate(NamedTuple):
    """The value of a metric and its 95% interval; NaN where there is nothing to compute it from."""

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


class Resample(NamedTuple):
    """The weight of each problem and of each seed in R resamples; [R, P] and [R, S]."""

    problems: np.ndarray
    seeds: np.ndarray


def resample(problems: int, seeds: int = 1, *, stream: int = 0) -> Resample:
    """The resamples of that many problems and seeds; every call returns the same ones.

    Resampling few seeds with replacement gives intervals that are too narrow: with three seeds they
    cover 75%. So the weight of seed i is 1 + t_i instead, with t_i such that the mean of the S
    values moves by its standard error times a Student-t draw with S - 1 degrees of freedom. Weights
    may be negative.

    Args:
      stream: of the draw of seeds; two models use two streams, but share their problems.
    """
    drawn = np.random.default_rng(0).integers(0, problems, (RESAMPLES, problems))
    counts = np.stack([np.bincount(row, minlength=problems) for row in drawn])
    if seeds == 1:
        return Resample(problems=counts, seeds=np.ones((RESAMPLES, 1)))
    rng = np.random.default_rng([1, stream])
    normal = rng.standard_normal((RESAMPLES, seeds))
    normal -= normal.mean(1, keepdims=True)
    variance = rng.chisquare(seeds - 1, (RESAMPLES, 1)) / (seeds - 1)
    weights = 1 + normal * np.sqrt(seeds / (seeds - 1) / variance)
    return Resample(problems=counts, seeds=weights)


def estimate(terms: Sequence[Terms], resamples: Resample) -> Estimate:
    """A metric of one model, from the terms of each of its S seeds on the same problems.

    The interval spans the percentiles 2.5 and 97.5 of the resamples. Where a proportion is equal on
    all problems, the interval is at least as wide as the exact one of Clopper and Pearson.
    """
    found = percentile_interval(_value(terms), weighted_ratio(terms, *resamples))
    numerators, denominators = (np.stack(part) for part in zip(*terms, strict=True))
    if (numerators < 0).any():
        return found
    is_proportion = (denominators == 1).all() and (numerators <= 1).all()
    highest = 1.0 if is_proportion else math.inf
    found = found._replace(low=max(found.low, 0.0), high=min(found.high, highest))
    return _at_least_exact(found, numerators, denominators, 0.0)


def difference(
    terms: Sequence[Terms], resamples: Resample, base: Sequence[Terms], base_resamples: Resample
) -> Estimate:
    """A metric minus that of a baseline on the same problems, resampled together.

    Raises:
      ValueError: if the numbers of problems differ.
    """
    if resamples.problems.shape != base_resamples.problems.shape:
        raise ValueError(
            f"the model has {resamples.problems.shape[1]} problems, the baseline "
            f"{base_resamples.problems.shape[1]}; expected the same ones"
        )
    with np.errstate(invalid="ignore"):
        gaps = weighted_ratio(terms, *resamples) - weighted_ratio(base, *base_resamples)
    found = percentile_interval(_value(terms) - _value(base), gaps)
    numerators, denominators = (np.stack(part) for part in zip(*terms, *base, strict=True))
    if (denominators != 1).any() or numerators.min() < 0 or numerators.max() > 1:
        return found
    found = found._replace(low=max(found.low, -1.0), high=min(found.high, 1.0))
    gap = numerators[: len(terms)].mean(0) - numerators[len(terms) :].mean(0)
    return _at_least_exact(found, gap[None], np.ones_like(gap)[None], -1.0)


def weighted_ratio(terms: Sequence[Terms], problems: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The metric [R] under R rows of weights, over the terms of all S seeds.

    Without a denominator it is infinite (tokens, but no correct answer) or NaN (no numerator).
    """
    numerator, denominator = (
        np.einsum("rs,rp,sp->r", seeds, problems, np.stack(part), optimize=True)
        for part in zip(*terms, strict=True)
    )
    empty = np.where(numerator > 0, np.inf, np.nan)
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1), empty)


def percentile_interval(value: float, samples: np.ndarray) -> Estimate:
    """`value` with the percentiles 2.5 and 97.5 of the resampled values."""
    samples = samples[~np.isnan(samples)]
    if not np.isfinite(value) or not len(samples):
        return UNKNOWN
    # Between a finite and an infinite value there is nothing to interpolate.
    method = "linear" if np.isfinite(samples).all() else "nearest"
    low, high = np.percentile(samples, [2.5, 97.5], method=method)
    return Estimate(value, float(low), float(high))


def _value(terms: Sequence[Terms]) -> float:
    """The metric of all problems and seeds, each with the weight 1."""
    problems = len(terms[0].numerator)
    return float(weighted_ratio(terms, np.ones((1, problems)), np.ones((1, len(terms))))[0])


def _at_least_exact(
    found: Estimate, numerators: np.ndarray, denominators: np.ndarray, lowest: float
) -> Estimate:
    """Widens the interval of a proportion (or of a difference of two) that never varies.

    The bootstrap interval of P equal problems has the width 0, although the next problem may well
    differ. Clopper and Pearson bound how often problems differ; the interval is at least that wide.
    """
    if (denominators != 1).any() or np.ptp(numerators) > 1e-12 or abs(numerators).max() > 1:
        return found
    width = _clopper_pearson_width(numerators.shape[-1])
    low, high = max(lowest, found.value - width), min(1.0, found.value + width)
    return found._replace(low=min(found.low, low), high=max(found.high, high))


@functools.cache
def _clopper_pearson_width(problems: int) -> float:
    """The width of the exact 95% interval for P successes of P: 1 - 0.025^(1/P)."""
    from scipy.stats import binomtest  # takes half a second to import

    return 1 - float(binomtest(problems, problems).proportion_ci(0.95, method="exact").low)
