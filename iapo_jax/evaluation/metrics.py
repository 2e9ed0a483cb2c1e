"""Figures of sampled completions, with 95% intervals by a bootstrap over problems. No JAX.

Every figure is a ratio of means over problems of two numbers that each problem has,

    figure = sum_p numerator_p / sum_p denominator_p      (denominator 1: a plain mean),

so that one set of resampled problems serves all of them, and the same set two models: that is what
pairs a difference. Seeds of training (S) are inside: a resample moves their mean as Student's t has
it for S values, for each model apart, and every problem keeps all of its samples.
"""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


_GRID = 2048  # budgets that a matched length is looked for among, where there are more


class Outcomes(NamedTuple):
    """Every completion of an evaluation; arrays [problems, samples]."""

    correct: np.ndarray  # bool
    length: np.ndarray  # int, tokens with the stop token
    finished: np.ndarray  # bool; False where the length limit cut the completion
    votes: np.ndarray  # int; equal where a problem's answers are the same, -1 where there is none


class Estimate(NamedTuple):
    """A figure and its 95% interval; NaN where there is nothing to compute it from."""

    value: float
    low: float
    high: float


class Terms(NamedTuple):
    """The two numbers that each problem has for a figure; [P] each."""

    numerator: np.ndarray
    denominator: np.ndarray


class Resample(NamedTuple):
    """The weight of each problem and of each seed in a resample; [R, P] and [R, S]."""

    problems: np.ndarray
    seeds: np.ndarray


def pass_at_k(right: np.ndarray, samples: int, k: int) -> np.ndarray:
    """Chance that k of n samples hold a right one: 1 - C(n - c, k) / C(n, k), unbiased.

    Args:
      right: [P], c: right samples of each problem.

    Raises:
      ValueError: if k is not in 1 .. samples.

    Source: Chen et al., arXiv:2107.03374, Eq. 1.
    """
    _check_k(k, samples)
    table = [1 - math.comb(samples - c, k) / math.comb(samples, k) for c in range(samples + 1)]
    return np.asarray(table)[right]


def majority_at_k(votes: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """Chance that the most frequent answer of k of n samples is right; ties are broken by lot.

    Exact, over all C(n, k) choices. No answer (-1) is no vote; without any vote it is wrong.

    Args:
      votes, correct: [P, n], as in `Outcomes`.

    Raises:
      ValueError: if k is not in 1 .. n.
    """
    _check_k(k, votes.shape[1])
    values = []
    for answers, right in zip(votes, correct, strict=True):
        silent = int((answers < 0).sum())
        won = int(right.sum())
        _, rivals = np.unique(answers[(answers >= 0) & ~right], return_counts=True)
        values.append(_majority(won, tuple(sorted(rivals.tolist())), silent, k))
    return np.asarray(values, float)


@functools.lru_cache(maxsize=100_000)
def _majority(won: int, rivals: tuple[int, ...], silent: int, k: int) -> float:
    """`majority_at_k` of one problem with so many votes for the right answer and each rival."""
    samples = won + sum(rivals) + silent
    total, share = math.comb(samples, k), Fraction(0)
    kind = float if samples <= 500 else object  # counts beyond what a float can hold
    for mine in range(1, min(won, k) + 1):
        # ways[t, m]: to draw m of the others such that t rivals have as many votes, none more
        ways = np.zeros((k // mine + 1, k - mine + 1), kind)
        ways[0, : silent + 1] = [math.comb(silent, m) for m in range(min(silent, k - mine) + 1)]
        for size in rivals:
            drawn = np.zeros_like(ways)
            for votes in range(min(size, mine, k - mine) + 1):
                part = math.comb(size, votes) * ways[:, : ways.shape[1] - votes]
                if votes < mine:
                    drawn[:, votes:] += part
                else:
                    drawn[1:, votes:] += part[:-1]
            ways = drawn
        ties = [Fraction(count) / (1 + t) for t, count in enumerate(ways[:, k - mine].tolist())]
        share += math.comb(won, mine) * sum(ties)
    return float(share / total)


def _check_k(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; expected 1 to {samples}, the samples of a problem")


def figure_terms(
    outcomes: Outcomes, ks: Sequence[int] = (1,), budgets: Sequence[int] = ()
) -> dict[str, Terms]:
    """The terms of every figure by name; lengths in tokens.

    accuracy, length, length_correct, length_wrong, cut_share, tokens_per_right_answer;
    pass@k, length@k (the mean over k samples: the same for every k), ratio@k = pass@k / length@k,
    majority@k; accuracy_within@B: right within B tokens, and wrong where it would be cut there.
    """
    correct, length = np.asarray(outcomes.correct, bool), np.asarray(outcomes.length, float)
    ones = np.ones(len(correct))
    mean = lambda x: np.asarray(x, float).mean(1)  # noqa: E731
    terms = {
        "accuracy": Terms(mean(correct), ones),
        "length": Terms(mean(length), ones),
        "length_correct": Terms(mean(length * correct), mean(correct)),
        "length_wrong": Terms(mean(length * ~correct), mean(~correct)),
        "cut_share": Terms(mean(~np.asarray(outcomes.finished, bool)), ones),
        "tokens_per_right_answer": Terms(mean(length), mean(correct)),
    }
    for k in ks:
        passed = pass_at_k(correct.sum(1), correct.shape[1], k)
        terms[f"pass@{k}"] = Terms(passed, ones)
        terms[f"length@{k}"] = terms["length"]
        terms[f"ratio@{k}"] = Terms(passed, mean(length))
        terms[f"majority@{k}"] = Terms(majority_at_k(outcomes.votes, correct, k), ones)
    for budget in budgets:
        terms[f"accuracy_within@{budget}"] = Terms(mean(correct & (length <= budget)), ones)
    return terms


def resample(problems: int, seeds: int = 1, *, stream: int = 0) -> Resample:
    """The resamples of so many problems and seeds: always the same ones.

    Problems are drawn with replacement. Of few seeds that would be too narrow (with three it covers
    75%): their weights are 1 + t_i with t_i such that the mean of S values moves as their standard
    error times Student's t with S - 1 degrees of freedom; the weights may be negative.

    Args:
      stream: of the draw of seeds; two models have two, while the problems are theirs together.
    """
    drawn = np.random.default_rng(0).integers(0, problems, (RESAMPLES, problems))
    counts = np.stack([np.bincount(row, minlength=problems) for row in drawn])
    if seeds == 1:
        return Resample(counts, np.ones((RESAMPLES, 1)))
    rng = np.random.default_rng([1, stream])
    normal = rng.standard_normal((RESAMPLES, seeds))
    normal -= normal.mean(1, keepdims=True)
    spread = rng.chisquare(seeds - 1, (RESAMPLES, 1)) / (seeds - 1)
    return Resample(counts, 1 + normal * np.sqrt(seeds / (seeds - 1) / spread))


def _mix(terms: Sequence[Terms], problems: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The figure [R] under each row of weights, over the terms of all S seeds."""
    top, bottom = (
        np.einsum("rs,rp,sp->r", seeds, problems, np.stack(part), optimize=True)
        for part in zip(*terms, strict=True)
    )
    nothing = np.where(top > 0, np.inf, np.nan)  # tokens without a right answer, or no answer
    return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), nothing)


def _whole(terms: Sequence[Terms]) -> float:
    size = len(terms[0].numerator)
    return float(_mix(terms, np.ones((1, size)), np.ones((1, len(terms))))[0])


def _interval(value: float, samples: np.ndarray) -> Estimate:
    samples = samples[~np.isnan(samples)]
    if not np.isfinite(value) or not len(samples):
        return Estimate(math.nan, math.nan, math.nan)
    method = "linear" if np.isfinite(samples).all() else "nearest"  # no mean of a number and inf
    low, high = np.percentile(samples, [2.5, 97.5], method=method)
    return Estimate(value, float(low), float(high))


def _least_width(found: Estimate, tops: np.ndarray, bottoms: np.ndarray, lowest: float) -> Estimate:
    """Widens the interval of a share (or of a difference of two) that is equal on all problems.

    P equal problems have no spread to resample, but prove little: one in 1 - 0.025^(1/P) may differ
    (Clopper and Pearson, who have this for shares of 0 and 1).
    """
    if (bottoms != 1).any() or np.ptp(tops) > 1e-12 or abs(tops).max() > 1:
        return found
    free = 1 - 0.025 ** (1 / tops.shape[-1])
    low, high = max(lowest, found.value - free), min(1.0, found.value + free)
    return found._replace(low=min(found.low, low), high=max(found.high, high))


def estimate(terms: Sequence[Terms], drawn: Resample) -> Estimate:
    """A figure of one model, from the terms of each of its S seeds on the same problems.

    The interval is the percentiles of the resamples; that of a share which is equal on all problems
    is wider (`_least_width`).
    """
    found = _interval(_whole(terms), _mix(terms, *drawn))
    tops, bottoms = (np.stack(part) for part in zip(*terms, strict=True))
    if (tops < 0).any():
        return found
    share = (bottoms == 1).all() and (tops <= 1).all()
    found = found._replace(
        low=max(found.low, 0.0), high=min(found.high, 1.0 if share else math.inf)
    )
    return _least_width(found, tops, bottoms, 0.0)


def difference(
    terms: Sequence[Terms], drawn: Resample, base: Sequence[Terms], base_drawn: Resample
) -> Estimate:
    """A figure minus that of a baseline on the same problems, resampled together.

    Raises:
      ValueError: if they have other problems.
    """
    if drawn.problems.shape != base_drawn.problems.shape:
        raise ValueError(
            f"{drawn.problems.shape[1]} problems against {base_drawn.problems.shape[1]}: "
            "expected the same ones"
        )
    with np.errstate(invalid="ignore"):
        gaps = _mix(terms, *drawn) - _mix(base, *base_drawn)
    found = _interval(_whole(terms) - _whole(base), gaps)
    tops, bottoms = (np.stack(part) for part in zip(*terms, *base, strict=True))
    if (bottoms != 1).any() or tops.min() < 0 or tops.max() > 1:
        return found
    found = found._replace(low=max(found.low, -1.0), high=min(found.high, 1.0))
    own = tops[: len(terms)].mean(0) - tops[len(terms) :].mean(0)
    return _least_width(found, own[None], np.ones_like(own)[None], -1.0)


class Matched(NamedTuple):
    """Two models at one mean length: the longer one is cut until it spends what the other does."""

    budget: float  # tokens at which the longer one is cut
    longer_is_baseline: bool
    accuracy: float
    baseline: float
    difference: Estimate  # accuracy - baseline


def accuracy_at_matched_length(
    seeds: Sequence[Outcomes], drawn: Resample, base: Sequence[Outcomes], base_drawn: Resample
) -> Matched:
    """Accuracies where both spend the same mean number of tokens.

    Let B be the budget at which the longer model, cut there, spends as much as the shorter one:
    mean(min(length, B)) = mean(length of the shorter). What is cut is wrong. In each resample B is
    found anew.
    """
    length = lambda many: float(np.mean([o.length.mean() for o in many]))  # noqa: E731
    swap = length(seeds) > length(base)
    long, short = (seeds, base) if swap else (base, seeds)
    # Between two lengths that occur, accuracy does not change with the budget.
    grid = np.unique(np.concatenate([[0], *(np.ravel(o.length) for o in long)]))
    exact = len(grid) <= _GRID
    if not exact:
        grid = np.unique(np.quantile(grid, np.linspace(0, 1, _GRID)).astype(int))
    # [S, P, budgets]: of each problem of the longer model under each budget
    spent = np.stack([_under(o, grid, lambda n, b, _: np.minimum(n, b)) for o in long])
    right = np.stack([_under(o, grid, lambda n, b, ok: ok & (n <= b)) for o in long])
    goal = [figure_terms(o)["length"] for o in short]
    own = [figure_terms(o)["accuracy"] for o in short]

    def matched(
        weights: np.ndarray, many: np.ndarray, few: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = weights.sum(1, keepdims=True) * many.sum(1, keepdims=True)

        def mix(x: np.ndarray) -> np.ndarray:
            return np.einsum("rs,rp,spb->rb", many, weights, x, optimize=True) / count

        tokens, allowed = mix(spent), _mix(goal, weights, few)
        at = (tokens <= allowed[:, None] + 1e-9).sum(1) - 1
        budget = [np.interp(g, t, grid) for g, t in zip(allowed, tokens, strict=True)]
        accurate = mix(right)
        if exact:
            cut = accurate[np.arange(len(at)), at]
        else:
            cut = [np.interp(b, grid, row) for b, row in zip(budget, accurate, strict=True)]
        return np.asarray(budget), np.asarray(cut), _mix(own, weights, few)

    of_long, of_short = (drawn, base_drawn) if swap else (base_drawn, drawn)
    one = lambda many: np.ones((1, len(many)))  # noqa: E731
    weights = np.ones((1, len(spent[0])))
    (budget,), (cut,), (whole,) = matched(weights, one(long), one(short))
    _, cuts, wholes = matched(drawn.problems, of_long.seeds, of_short.seeds)
    sign = 1 if swap else -1
    accuracy, baseline = (cut, whole) if swap else (whole, cut)
    spread = _interval(float(accuracy - baseline), sign * (cuts - wholes))
    return Matched(float(budget), not swap, float(accuracy), float(baseline), spread)


def _under(
    outcomes: Outcomes,
    grid: np.ndarray,
    count: Callable[[np.ndarray, float, np.ndarray], np.ndarray],
) -> np.ndarray:
    columns = [count(outcomes.length, budget, outcomes.correct).mean(1) for budget in grid]
    return np.stack(columns, axis=-1)
