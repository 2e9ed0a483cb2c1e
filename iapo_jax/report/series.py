"""The numbers behind the report's charts: pure functions of arrays."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.evaluation.estimates import estimates, measure
from iapo_jax.evaluation.intervals import resample
from iapo_jax.evaluation.metrics import Outcomes
from iapo_jax.information.inspection import Inspection

_BARS = 24  # at most this many in a histogram


class Band(NamedTuple):
    """A line and the band around it; low and high are NaN where there is no band."""

    x: np.ndarray  # [T]
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def seed_band(steps: np.ndarray, values: np.ndarray, smooth: int = 1) -> Band:
    """Mean, lowest and highest of the seeds at each step; values [S, T] -> Band of T.

    With `smooth` = n, every point is the mean of n steps of a seed, placed at the last of them;
    remaining steps form one more point. A step at which a seed has no value (NaN) is a gap.
    """
    starts = np.arange(0, len(steps), smooth)
    sizes = np.diff(np.append(starts, len(steps)))
    values = np.add.reduceat(values, starts, axis=1) / sizes if len(steps) else values
    ends = steps[starts + sizes - 1]
    if len(values) == 1:
        return Band(ends, values[0], *_no_band(len(ends)))
    return Band(ends, values.mean(0), values.min(0), values.max(0))


def _no_band(points: int) -> np.ndarray:
    """Low and high where there is no band; [2, points]."""
    return np.full((2, points), math.nan)


def pareto_front(cost: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Indices of the points that no other point beats, in order of cost.

    A point beats another if it costs no more, gains no less, and is strictly better in one of them.
    """
    front: list[int] = []
    for index in np.lexsort((-gain, cost)):
        last = front[-1] if front else None
        if last is None or gain[index] > gain[last]:
            front.append(index)
        elif gain[index] == gain[last] and cost[index] == cost[last]:
            front.append(index)  # the same point twice: neither beats the other
    return np.array(front, int)


def length_edges(longest: int) -> np.ndarray:
    """Edges of bars of equal width over 1..longest; the width is 1, 2 or 5 times a power of ten."""
    widths = (m * 10**e for e in range(12) for m in (1, 2, 5))
    width = next(w for w in widths if w * _BARS >= longest)
    return np.arange(0, longest + width, width) + 0.5


def length_counts(length: np.ndarray, correct: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Completions in each bar: [2, bars], the correct ones first."""
    return np.stack([np.histogram(length[part], edges)[0] for part in (correct, ~correct)])


def information_curve(inspections: Sequence[Inspection], bins: int = 10) -> Band:
    """Mean informativeness, nats per token, over the relative position in the thinking.

    Token t of T lies on [t/T, (t+1)/T] and is divided among the bins that it overlaps, so a
    completion counts once however long it thinks. The band is the 95% interval of the mean by a
    bootstrap over prompts, whose completions stay together; there is none for fewer than two
    prompts. Completions without thinking are left out.
    """
    edges = np.linspace(0, 1, bins + 1)
    by_prompt: dict[str, list[np.ndarray]] = {}
    for inspection in inspections:
        count = inspection.thinking_length
        if count:
            summed = np.append(0, np.cumsum(inspection.informativeness[:count]))
            at_edges = np.interp(edges, np.arange(count + 1) / count, summed)
            density = np.diff(at_edges) * bins / count
            by_prompt.setdefault(inspection.prompt, []).append(density)
    middles = (edges[1:] + edges[:-1]) / 2
    if not by_prompt:
        return Band(middles, np.full(bins, math.nan), *_no_band(bins))
    sums = np.array([np.sum(rows, 0) for rows in by_prompt.values()])
    counts = np.array([len(rows) for rows in by_prompt.values()])
    mean = sums.sum(0) / counts.sum()
    if len(counts) < 2:
        return Band(middles, mean, *_no_band(bins))
    weights = resample(len(counts)).problems
    means = (weights @ sums) / (weights @ counts)[:, None]
    return Band(middles, mean, *np.percentile(means, [2.5, 97.5], axis=0))


def accuracy_within(outcomes: Sequence[Outcomes], points: int = 24, *, banded: bool = True) -> Band:
    """The share of completions that are correct within B tokens, by B; longer ones are incorrect.

    The outcomes are those of one model's seeds on the same problems; the band is the 95% interval
    of each point.
    """
    longest = max(int(one.length.max()) for one in outcomes)
    budgets = np.unique(np.linspace(1, longest, points).round().astype(int))
    if not banded:
        shares = [[(o.correct & (o.length <= b)).mean() for b in budgets] for o in outcomes]
        return Band(budgets, np.mean(shares, 0), *_no_band(len(budgets)))
    found = estimates(measure(outcomes, (), budgets.tolist()))
    return Band(budgets, *np.array([found[f"accuracy_within@{b}"] for b in budgets]).T)
