"""Metrics of the experiment from its results, with intervals over seeds and problems.

Intervals are those of `iapo_jax.evaluation.intervals`, which `iapo_jax.evaluate` also uses; two
methods are compared on the same problems.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.evaluation import intervals
from iapo_jax.evaluation.intervals import Estimate
from iapo_jax.evaluation.metrics import Outcomes, Terms, metric_terms, pass_at_k
from sweep import queue
from sweep.plan import OURS, RIVALS, START, confirming_jobs, final_jobs, methods_of
from sweep.records import Result, is_current
from sweep.store import read_all

BASE = "grpo"
SHIFTED = {"shifted": ("hard", "longer")}
"""Settings that measure the runs of a different setting on a further test split."""


class Entry(NamedTuple):
    """The final runs of a method in a setting."""

    name: str
    seeds: tuple[Outcomes, ...]
    results: tuple[Result, ...]


class Setting(NamedTuple):
    """All results of one setting."""

    name: str
    start: Entry
    entries: dict[str, Entry]  # by method, in the order of the plan
    grids: dict[str, list[Result]]  # by method, in the order of the grid; on the selection split
    chosen: dict[str, int]
    confirming: dict[str, Entry] = {}  # some of these methods with new seeds


def load(directory: Path, name: str) -> Setting | None:
    """A setting's results, complete or not; None if its initial model was not measured."""
    of, split = SHIFTED.get(name, (name, "test"))
    results = [one for one in read_all(directory, of) if is_current(one)]
    start = next((one for one in results if one.method == START), None)
    methods = methods_of(of)
    if start is None:
        return None
    grids: dict[str, list[Result]] = {}
    entries: dict[str, Entry] = {}
    confirming: dict[str, Entry] = {}
    chosen: dict[str, int] = {}
    for method in methods:
        own = [one for one in results if one.method == method]
        grids[method] = sorted((r for r in own if not r.job.final), key=lambda r: r.choice)
        choice = queue.chosen(of, method, directory)
        if choice is None:
            continue
        chosen[method] = choice
        for place, jobs in ((entries, final_jobs), (confirming, confirming_jobs)):
            planned = jobs(of, method, choice)
            found = tuple(r for r in own if r.job in planned)
            if found:
                place[method] = Entry(method, tuple(r.outcomes[split] for r in found), found)
    begun = Entry(START, (start.outcomes[split],), (start,))
    return Setting(name, begun, entries, grids, chosen, confirming)


FIGURES = ("accuracy", "length", "pass@4", "ratio", "tokens_per_right_answer")


def terms_of(entry: Entry, figure: str) -> list[Terms]:
    """The terms of a metric for each seed; `ratio` is accuracy / length."""
    found = []
    for one in entry.seeds:
        if figure == "pass@4":
            passed = pass_at_k(one.correct.sum(1), one.correct.shape[1], 4)
            found.append(Terms(passed, np.ones(len(passed))))
            continue
        terms = metric_terms(one, ks=())
        ratio = Terms(terms["accuracy"].numerator, terms["length"].numerator)
        found.append(ratio if figure == "ratio" else terms[figure])
    return found


def _drawn(entry: Entry, stream: int) -> intervals.Resample:
    return intervals.resample(len(entry.seeds[0].correct), len(entry.seeds), stream=stream)


def figure(entry: Entry, name: str) -> Estimate:
    """A metric of a method, with its 95% interval over seeds and problems."""
    return intervals.estimate(terms_of(entry, name), _drawn(entry, 0))


def difference(entry: Entry, base: Entry, name: str) -> Estimate:
    """A metric minus that of another method, on the same problems."""
    return intervals.difference(
        terms_of(entry, name), _drawn(entry, 0), terms_of(base, name), _drawn(base, 1)
    )


def relative_length(entry: Entry, base: Entry) -> Estimate:
    """length / length of the base - 1, in percent.

    The bounds are nan if the interval of a mean length reaches 0: such a ratio has no interval.
    """
    own, other = ([t.numerator for t in terms_of(one, "length")] for one in (entry, base))
    drawn = [_drawn(entry, 0), _drawn(base, 1)]

    lengths = [np.stack(x) for x in (own, other)]

    def ratio(means: Sequence) -> Any:
        return 100 * (means[0] / means[1] - 1)

    value = float(ratio([x.mean() for x in lengths]))
    means = [_mean(x, d.seeds, d.problems) for x, d in zip(lengths, drawn, strict=True)]
    if min(np.percentile(mean, 2.5) for mean in means) <= 0:
        return Estimate(value, math.nan, math.nan)
    low, high = np.percentile(ratio(means), [2.5, 97.5])
    return Estimate(value, float(low), float(high))


class Point(NamedTuple):
    """A point of a method's grid on a split: means over samples, both [S, P]."""

    length: np.ndarray
    accuracy: np.ndarray


def front(setting: Setting, method: str) -> list[Point]:
    """The initial model and the points of a method's grid measured on the setting's split.

    The chosen point has its final seeds, the others the seed of the grid.
    """
    split = SHIFTED.get(setting.name, (setting.name, "test"))[1]

    def point(seeds: Sequence[Outcomes]) -> Point:
        return Point(
            np.stack([o.length.mean(1) for o in seeds]),
            np.stack([o.correct.mean(1) for o in seeds]),
        )

    found = [point(setting.start.seeds)]
    for one in setting.grids[method]:
        if one.choice == setting.chosen.get(method) and method in setting.entries:
            found.append(point(setting.entries[method].seeds))
        elif split in one.outcomes:
            found.append(point([one.outcomes[split]]))
    return found


class AtEqualLength(NamedTuple):
    """Two methods at a length that both fronts reach."""

    tokens: float  # of the first method's final runs, or the shortest of the second
    first: float
    second: float
    difference: Estimate  # of their accuracies


def at_equal_length(setting: Setting, method: str, rival: str) -> AtEqualLength:
    """Accuracies of two fronts at one length, interpolated linearly between their points.

    The length is that of the method's final runs, or of the rival's shortest point if that is
    longer. A front has no point that another one beats in both length and accuracy. In a
    resample, a point with one seed is shifted by the deviation of a final run from its method's
    mean, drawn from all methods with fronts and scaled by sqrt(S / (S - 1)).
    """
    fronts = [front(setting, name) for name in (method, rival)]
    moves = _moves(setting)
    own = np.stack([o.length.mean(1) for o in setting.entries[method].seeds])

    def read(
        weights: list[list[np.ndarray]], problems: np.ndarray, rng: np.random.Generator | None
    ) -> list[np.ndarray]:
        means = [
            [[_mean(x, s, problems) for x in point] for point, s in zip(points, seeds, strict=True)]
            for points, seeds in zip(fronts, weights, strict=True)
        ]
        for points, found in zip(fronts, means, strict=True):
            # The first point is the initial model, which has no training seed.
            for point, mean in zip(points[1:], found[1:], strict=True):
                if rng is not None and len(point.length) == 1:
                    move = moves[rng.integers(0, len(moves), len(problems))]
                    mean[0], mean[1] = mean[0] + move[:, 0], mean[1] + move[:, 1]
        chosen = _mean(own, np.ones((len(problems), len(own))), problems)
        at = np.maximum(chosen, np.min([length for length, _ in means[1]], axis=0))
        return [at, *(_on(points, at) for points in means)]

    ones = [[np.ones((1, len(p.length))) for p in points] for points in fronts]
    (tokens,), (first,), (second,) = read(ones, np.ones((1, own.shape[1])), None)
    drawn, stream = [], 0
    for points in fronts:
        drawn.append([])
        for p in points:
            drawn[-1].append(intervals.resample(own.shape[1], len(p.length), stream=stream).seeds)
            stream += 1
    rng = np.random.default_rng(2)
    _, firsts, seconds = read(drawn, intervals.resample(own.shape[1]).problems, rng)
    low, high = np.percentile(firsts - seconds, [2.5, 97.5])
    gap = Estimate(float(first - second), float(low), float(high))
    return AtEqualLength(float(tokens), float(first), float(second), gap)


def _moves(setting: Setting) -> np.ndarray:
    """Deviations of length and accuracy between seeds, for methods that have fronts; [N, 2]."""
    found = [np.zeros((1, 2))]  # if there are none
    for name, entry in setting.entries.items():
        if name in (OURS, *RIVALS) and len(entry.seeds) > 1:
            means = np.asarray([(o.length.mean(), o.correct.mean()) for o in entry.seeds])
            size = len(means)
            found.append((means - means.mean(0)) * np.sqrt(size / (size - 1)))
    return np.concatenate(found[1:] or found)


def _mean(values: np.ndarray, seeds: np.ndarray, problems: np.ndarray) -> np.ndarray:
    """Means [R] of [S, P] under weights of seeds [R, S] and of problems [R, P]."""
    total = np.einsum("rs,rp,sp->r", seeds, problems, values, optimize=True)
    return total / (seeds.sum(1) * problems.sum(1))


def _on(points: Sequence[Sequence[np.ndarray]], at: np.ndarray) -> np.ndarray:
    """Accuracies [R] of fronts at lengths [R]; the points are (lengths, accuracies), [R] each."""
    lengths, accuracies = (np.stack(x, axis=1) for x in zip(*points, strict=True))
    found = []
    for length, accuracy, where in zip(lengths, accuracies, at, strict=True):
        order = np.lexsort((-accuracy, length))
        kept = [i for n, i in enumerate(order) if (accuracy[order[:n]] < accuracy[i]).all()]
        found.append(np.interp(where, length[kept], accuracy[kept]))
    return np.asarray(found)


def mean_categories(entry: Entry) -> dict[str, float]:
    """Tokens of each category in a correct completion, means over seeds."""
    names = entry.results[0].categories
    return {name: float(np.mean([r.categories[name] for r in entry.results])) for name in names}


def mean_information(entry: Entry) -> dict[str, dict[str, float]]:
    """Nats and tokens by category, and the profile over the reasoning; means over seeds."""
    found = [r.information for r in entry.results if r.information]
    if not found:
        return {}

    def mean(key: str) -> dict[str, float]:
        return {n: float(np.mean([f[key][n] for f in found])) for n in found[0][key]}

    profiles = [f["profile"] for f in found if f["profile"]]
    profile = np.mean(profiles, 0).tolist() if profiles else []
    return {"nats": mean("nats"), "tokens": mean("tokens"), "profile": dict(enumerate(profile))}
