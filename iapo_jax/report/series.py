"""The numbers behind the report's charts: pure functions of arrays."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.evaluation.metrics import Outcomes, estimate, figure_terms, resample
from iapo_jax.information.inspection import Inspection

_BARS = 24  # of a histogram, at most


class Band(NamedTuple):
    """A line and what surrounds it; low and high are NaN where there is no band."""

    x: np.ndarray  # [T]
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def seed_band(steps: np.ndarray, values: np.ndarray, smooth: int = 1) -> Band:
    """Mean, lowest and highest of the seeds at each step; values [S, T] -> Band of T.

    With `smooth` = n every point is the mean of n steps of a seed, at the last of them; a rest is
    a point of its own. A step at which a seed has no value (NaN) is a gap.
    """
    cuts = np.arange(0, len(steps), smooth)
    sizes = np.diff(np.append(cuts, len(steps)))
    values = np.add.reduceat(values, cuts, axis=1) / sizes if len(steps) else values
    ends = steps[cuts + sizes - 1]
    nothing = np.full(len(ends), math.nan)
    if len(values) == 1:
        return Band(ends, values[0], nothing, nothing)
    return Band(ends, values.mean(0), values.min(0), values.max(0))


def pareto_front(cost: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Indices of the points that none beats, by rising cost.

    One beats another if it costs no more and gains no less, and one of the two is strict.
    """
    order = np.lexsort((-gain, cost))
    front: list[int] = []
    for index in order:
        last = front[-1] if front else None
        if last is None or gain[index] > gain[last]:
            front.append(index)
        elif gain[index] == gain[last] and cost[index] == cost[last]:
            front.append(index)  # the same point twice: neither beats the other
    return np.array(front, int)


def length_edges(longest: int) -> np.ndarray:
    """Edges of bars of equal whole width, 1, 2 or 5 times a power of ten, that hold 1..longest."""
    widths = (m * 10**e for e in range(12) for m in (1, 2, 5))
    width = next(w for w in widths if w * _BARS >= longest)
    return np.arange(0, longest + width, width) + 0.5


def length_counts(length: np.ndarray, correct: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Completions in each bar: [2, bars], the right ones first."""
    return np.stack([np.histogram(length[part], edges)[0] for part in (correct, ~correct)])


def information_curve(inspections: Sequence[Inspection], bins: int = 10) -> Band:
    """Mean informativeness, nats a token, over the relative position in the thinking.

    Token t of T lies on [t/T, (t+1)/T]; a bin takes of it what it overlaps, so that a completion
    counts once however long it thinks. The band is the 95% interval of the mean over prompts
    (completions of a prompt stay together) by a bootstrap; none for fewer than two prompts.
    Completions without thinking are left out.
    """
    edges = np.linspace(0, 1, bins + 1)
    by_prompt: dict[str, list[np.ndarray]] = {}
    for one in inspections:
        count = one.thinking_length
        if count:
            told = np.append(0, np.cumsum(one.informativeness[:count]))
            until = np.interp(edges, np.arange(count + 1) / count, told)
            by_prompt.setdefault(one.prompt, []).append(np.diff(until) * bins / count)
    middles = (edges[1:] + edges[:-1]) / 2
    if not by_prompt:
        return Band(middles, *np.full((3, bins), math.nan))
    sums = np.array([np.sum(rows, 0) for rows in by_prompt.values()])
    counts = np.array([len(rows) for rows in by_prompt.values()])
    mean = sums.sum(0) / counts.sum()
    if len(counts) < 2:
        return Band(middles, mean, *np.full((2, bins), math.nan))
    weights = resample(len(counts)).problems
    spread = (weights @ sums) / (weights @ counts)[:, None]
    return Band(middles, mean, *np.percentile(spread, [2.5, 97.5], axis=0))


def accuracy_within(outcomes: Sequence[Outcomes], points: int = 24, *, banded: bool = True) -> Band:
    """Share that is right within B tokens, over B; what is longer counts as wrong.

    The seeds of one model on the same problems; the band is the 95% interval of each point.
    """
    longest = max(int(one.length.max()) for one in outcomes)
    budgets = np.unique(np.linspace(1, longest, points).round().astype(int))
    if not banded:
        right = [[(o.correct & (o.length <= b)).mean() for b in budgets] for o in outcomes]
        return Band(budgets, np.mean(right, 0), *np.full((2, len(budgets)), math.nan))
    terms = [figure_terms(one, (), budgets.tolist()) for one in outcomes]
    drawn = resample(len(outcomes[0].correct), len(outcomes))
    names = [f"accuracy_within@{budget}" for budget in budgets]
    found = [estimate([part[name] for part in terms], drawn) for name in names]
    return Band(budgets, *np.array(found).T)
