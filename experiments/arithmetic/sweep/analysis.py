"""Figures of the experiment from its results, with intervals over seeds and problems.

Everything is computed by `iapo_jax.figures`, as `iapo_jax.evaluate` does: a resample draws seeds
and problems; two methods are compared on the same problems.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iapo_jax import figures
from iapo_jax.figures import Estimate, Outcomes, Terms, figure_terms
from sweep.choose import choose
from sweep.plan import methods_of
from sweep.records import START, Result, read_all

BASE = "grpo"
SHIFTED = {"shifted": ("hard", "longer")}
"""A setting that is another test split of the runs of a setting."""


class Entry(NamedTuple):
    """A method in a setting: its runs that are judged."""

    name: str
    seeds: tuple[Outcomes, ...]
    results: tuple[Result, ...]


class Setting(NamedTuple):
    """All that is known of one setting."""

    name: str
    start: Entry
    entries: dict[str, Entry]  # by method, in the order of the plan
    grids: dict[str, list[Result]]  # by method, in the order of the grid; on the selection split
    chosen: dict[str, int]


def load(directory: Path, name: str) -> Setting | None:
    """A setting's results, complete or not; None where its start model was not measured."""
    of, split = SHIFTED.get(name, (name, "test"))
    results = list(read_all(directory, of))
    start = next((one for one in results if one.method == START), None)
    if start is None:
        return None
    grids: dict[str, list[Result]] = {}
    entries: dict[str, Entry] = {}
    chosen: dict[str, int] = {}
    for method in methods_of(of):
        own = [one for one in results if one.method == method]
        grids[method] = sorted((r for r in own if not r.job.final), key=lambda r: r.choice)
        if len(grids[method]) < 4:
            continue
        chosen[method] = choose(grids[method]).choice
        final = tuple(
            r for r in own if r.job.final and r.choice == chosen[method] and split in r.outcomes
        )
        if final:
            entries[method] = Entry(method, tuple(r.outcomes[split] for r in final), final)
    begun = Entry(START, (start.outcomes[split],), (start,))
    return Setting(name, begun, entries, grids, chosen)


FIGURES = ("accuracy", "length", "pass@4", "ratio", "tokens_per_right_answer")


def terms_of(entry: Entry, figure: str) -> list[Terms]:
    """The terms of a figure for each seed; `ratio` is accuracy / length."""
    found = []
    for one in entry.seeds:
        if figure == "pass@4":
            passed = figures.pass_at_k(one.correct.sum(1), one.correct.shape[1], 4)
            found.append(Terms(passed, np.ones(len(passed))))
            continue
        terms = figure_terms(one, ks=())
        ratio = Terms(terms["accuracy"].numerator, terms["length"].numerator)
        found.append(ratio if figure == "ratio" else terms[figure])
    return found


def _drawn(entry: Entry, stream: int) -> figures.Resample:
    return figures.resample(len(entry.seeds[0].correct), len(entry.seeds), stream=stream)


def figure(entry: Entry, name: str) -> Estimate:
    """A figure of a method, with its 95% interval over seeds and problems."""
    return figures.estimate(terms_of(entry, name), _drawn(entry, 0))


def difference(entry: Entry, base: Entry, name: str) -> Estimate:
    """A figure minus that of another method, on the same problems."""
    return figures.difference(
        terms_of(entry, name), _drawn(entry, 0), terms_of(base, name), _drawn(base, 1)
    )


def relative_length(entry: Entry, base: Entry) -> Estimate:
    """length / length of the base - 1, in per cent."""
    own, other = ([t.numerator for t in terms_of(one, "length")] for one in (entry, base))
    drawn = [_drawn(entry, 0), _drawn(base, 1)]

    def ratio(parts: Sequence[tuple[Sequence[np.ndarray], np.ndarray, np.ndarray]]) -> np.ndarray:
        means = [
            np.einsum("rs,rp,sp->r", seeds, problems, np.stack(x), optimize=True) / seeds.sum(1)
            for x, problems, seeds in parts
        ]
        return 100 * (means[0] / means[1] - 1)

    ones = [(x, np.ones((1, len(x[0]))), np.ones((1, len(x)))) for x in (own, other)]
    many = [(x, d.problems, d.seeds) for x, d in zip((own, other), drawn, strict=True)]
    low, high = np.percentile(ratio(many), [2.5, 97.5])
    return Estimate(float(ratio(ones)[0]), float(low), float(high))


def matched(entry: Entry, base: Entry) -> figures.Matched:
    """Accuracies where the longer one is cut until both spend the same tokens."""
    return figures.accuracy_at_matched_length(
        entry.seeds, _drawn(entry, 0), base.seeds, _drawn(base, 1)
    )


def on_the_front(setting: Setting, method: str, length: float) -> float | None:
    """A method's accuracy at a length, read off its grid on the selection split.

    Linear between the start model and the grid's points that no other beats in both; None where the
    grid has nothing so short.
    """
    start = setting.start.results[0].outcomes.get("select")
    points = [(float(o.length.mean()), float(o.correct.mean())) for o in [start] if o is not None]
    points += [
        (float(r.outcomes["select"].length.mean()), float(r.outcomes["select"].correct.mean()))
        for r in setting.grids[method]
    ]
    front = [p for p in points if not any(q[0] <= p[0] and q[1] > p[1] for q in points)]
    front.sort()
    if not front or length < front[0][0]:
        return None
    lengths, accuracies = zip(*front, strict=True)
    return float(np.interp(length, lengths, accuracies))


def mean_categories(entry: Entry) -> dict[str, float]:
    """Tokens of each category in a right completion, mean over seeds."""
    names = entry.results[0].categories
    return {name: float(np.mean([r.categories[name] for r in entry.results])) for name in names}


def mean_information(entry: Entry) -> dict[str, dict[str, float]]:
    """Nats and tokens by category, and the profile over the reasoning; means over seeds."""
    found = [r.information for r in entry.results if r.information]
    if not found:
        return {}
    mean = lambda key: {n: float(np.mean([f[key][n] for f in found])) for n in found[0][key]}  # noqa: E731
    profiles = [f["profile"] for f in found if f["profile"]]
    profile = np.mean(profiles, 0).tolist() if profiles else []
    return {"nats": mean("nats"), "tokens": mean("tokens"), "profile": dict(enumerate(profile))}
