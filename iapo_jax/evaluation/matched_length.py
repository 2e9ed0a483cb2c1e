"""Two models at the same mean length: the longer one is truncated at a budget. No JAX."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.evaluation.intervals import (
    Estimate,
    Resample,
    percentile_interval,
    weighted_ratio,
)
from iapo_jax.evaluation.metrics import Outcomes, Terms, metric_terms

MOST_BUDGETS = 2048  # more distinct lengths than this are thinned out to quantiles


class Matched(NamedTuple):
    """Two models at one mean length."""

    budget: float  # tokens at which the longer model is truncated
    longer_is_baseline: bool
    accuracy: float
    baseline: float
    difference: Estimate  # accuracy - baseline


class _Truncated(NamedTuple):
    """The S seeds of the longer model under B budgets."""

    budgets: np.ndarray  # [B], rising
    tokens: np.ndarray  # [S, P, B], mean tokens of each problem
    accuracy: np.ndarray  # [S, P, B]; a truncated completion is incorrect
    exact: bool  # whether the budgets include every length that occurs


class _Untouched(NamedTuple):
    """The terms of the S seeds of the shorter model."""

    length: list[Terms]
    accuracy: list[Terms]


class _AtBudget(NamedTuple):
    """The budget at which both models spend equally many tokens, and accuracies there; [R] each."""

    budget: np.ndarray
    longer: np.ndarray  # accuracy
    shorter: np.ndarray


def accuracy_at_matched_length(
    seeds: Sequence[Outcomes],
    resamples: Resample,
    base: Sequence[Outcomes],
    base_resamples: Resample,
) -> Matched:
    """The accuracies of two models that spend the same mean number of tokens.

    Let B be the budget at which the longer model, truncated there, spends as much as the shorter
    one: mean(min(length, B)) = mean(length of the shorter). A truncated completion is incorrect.
    Every resample finds its own B.
    """
    longer_is_baseline = not _mean_length(seeds) > _mean_length(base)
    if longer_is_baseline:
        longer, longer_seeds, shorter, shorter_seeds = base, base_resamples, seeds, resamples
    else:
        longer, longer_seeds, shorter, shorter_seeds = seeds, resamples, base, base_resamples
    truncated, untouched = _truncate(longer), _terms(shorter)
    problems = np.ones((1, truncated.tokens.shape[1]))
    value = _match(
        truncated, untouched, problems, np.ones((1, len(longer))), np.ones((1, len(shorter)))
    )
    resampled = _match(
        truncated, untouched, resamples.problems, longer_seeds.seeds, shorter_seeds.seeds
    )
    if longer_is_baseline:
        accuracy, baseline = float(value.shorter[0]), float(value.longer[0])
        gaps = resampled.shorter - resampled.longer
    else:
        accuracy, baseline = float(value.longer[0]), float(value.shorter[0])
        gaps = resampled.longer - resampled.shorter
    return Matched(
        budget=float(value.budget[0]),
        longer_is_baseline=longer_is_baseline,
        accuracy=accuracy,
        baseline=baseline,
        difference=percentile_interval(accuracy - baseline, gaps),
    )


def _mean_length(seeds: Sequence[Outcomes]) -> float:
    return float(np.mean([outcomes.length.mean() for outcomes in seeds]))


def _terms(seeds: Sequence[Outcomes]) -> _Untouched:
    terms = [metric_terms(outcomes) for outcomes in seeds]
    return _Untouched([t["length"] for t in terms], [t["accuracy"] for t in terms])


def _truncate(seeds: Sequence[Outcomes]) -> _Truncated:
    # Between two lengths that occur, accuracy does not change with the budget.
    budgets = np.unique(np.concatenate([[0], *(np.ravel(one.length) for one in seeds)]))
    exact = len(budgets) <= MOST_BUDGETS
    if not exact:
        budgets = np.unique(np.quantile(budgets, np.linspace(0, 1, MOST_BUDGETS)).astype(int))
    tokens, accuracy = [], []
    for one in seeds:
        tokens.append(np.stack([np.minimum(one.length, b).mean(1) for b in budgets], -1))
        within = [(one.correct & (one.length <= b)).mean(1) for b in budgets]
        accuracy.append(np.stack(within, -1))
    return _Truncated(
        budgets=budgets,
        tokens=np.stack(tokens),
        accuracy=np.stack(accuracy),
        exact=exact,
    )


def _match(
    longer: _Truncated,
    shorter: _Untouched,
    problems: np.ndarray,
    longer_seeds: np.ndarray,
    shorter_seeds: np.ndarray,
) -> _AtBudget:
    """The budget at which both spend equally many tokens, for each row of weights."""
    tokens = _weighted_mean(longer.tokens, problems, longer_seeds)  # [R, B]
    accuracy = _weighted_mean(longer.accuracy, problems, longer_seeds)
    spent = weighted_ratio(shorter.length, problems, shorter_seeds)  # [R]
    budget = [np.interp(s, row, longer.budgets) for s, row in zip(spent, tokens, strict=True)]
    if longer.exact:
        place = (tokens <= spent[:, None] + 1e-9).sum(1) - 1
        matched = accuracy[np.arange(len(place)), place]
    else:
        matched = np.asarray(
            [np.interp(b, longer.budgets, row) for b, row in zip(budget, accuracy, strict=True)]
        )
    return _AtBudget(
        budget=np.asarray(budget),
        longer=matched,
        shorter=weighted_ratio(shorter.accuracy, problems, shorter_seeds),
    )


def _weighted_mean(values: np.ndarray, problems: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Means [R, B] of [S, P, B] under weights of problems [R, P] and of seeds [R, S]."""
    count = problems.sum(1, keepdims=True) * seeds.sum(1, keepdims=True)
    return np.einsum("rs,rp,spb->rb", seeds, problems, values, optimize=True) / count
