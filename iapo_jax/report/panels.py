"""The charts of a report, or a sentence each that says why one cannot be drawn."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.report.charts import Chart, Curve, Point, curves, frontier, histogram
from iapo_jax.report.comparison import Model, Section, outcomes_of
from iapo_jax.report.grouping import Line, metric_band
from iapo_jax.report.methods_table import told
from iapo_jax.report.series import (
    Band,
    accuracy_within,
    information_curve,
    length_counts,
    length_edges,
    pareto_front,
)

# Metric, file, title, unit.
LEARNING = (
    ("reward", "reward", "Reward", "mean of the completions"),
    ("accuracy", "accuracy", "Accuracy", "share of the completions that is right"),
    ("completions/mean_length", "length", "Length", "tokens of a completion"),
    ("entropy", "entropy", "Entropy", "nats a token"),
    ("kl", "kl", "KL to the start model", "nats a token"),
    ("iapo/information_per_token", "information", "Information", "nats a token of thinking"),
)


_SFT = (("loss", "loss", "Loss of supervised fine-tuning", "nats a token"),)


# Criterion of selection.jsonl, its name here, and the factor that goes with the name.
_CRITERIA = {"accuracy": ("accuracy", 1), "ratio": ("accuracy per 100 tokens", 100)}


_BANDS = 4  # models, at most, whose bands can be told apart


class Drawn(NamedTuple):
    """A place in the report: a chart, or why there is none."""

    title: str
    unit: str
    chart: Chart | None
    note: str  # what the reader must know of it


def slug(text: str, taken: set[str]) -> str:
    """A file's name for a text, other than those taken; taken afterwards."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "data"
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    name = next(n for n in itertools.chain([plain], numbered) if n not in taken)
    taken.add(name)
    return name


def learning_charts(lines: Sequence[Line], smooth: int) -> list[Drawn]:
    """One chart a metric, all lines in it."""
    tuned = any("loss" in run.metrics and "reward" not in run.metrics
                for line in lines for run in line.runs)  # fmt: skip
    return [_learning(lines, smooth, *spec) for spec in LEARNING + _SFT * tuned]


def _learning(
    lines: Sequence[Line], smooth: int, metric: str, name: str, title: str, unit: str
) -> Drawn:
    if metric == "loss":
        lines = [one for one in lines if not any("reward" in run.metrics for run in one.runs)]
    shown, notes, missing = [], [], []
    for line in lines:
        band, note = metric_band(line, metric, smooth)
        notes += [note] if note else []
        if band is not None:
            shown.append(Curve(line.name, line.look, band))
        elif not note:
            missing.append(line.name)
    if missing:
        notes.append(f"Not written down by {_named(missing, 'lines')}")
    if not shown:
        return Drawn(title, unit, None, f"Not drawn: no run has written down `{metric}`.")
    ends = "; ".join(f"{c.name} from {_last(c, 0)} to {_last(c, -1)}" for c in shown)
    chart = curves(
        *(name, f"{title}: {unit}", shown),
        x_label="step",
        description=f"{title} ({unit}) over training steps: {ends}.",
    )
    return Drawn(title, unit, chart, _sentence(notes))


def _sentence(notes: Sequence[str]) -> str:
    return "; ".join(notes) + "." * bool(notes)


def _named(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} {what}"


def _last(curve: Curve, end: int) -> str:
    there = curve.band.middle[np.isfinite(curve.band.middle)]
    return f"{there[end]:.4g}" if len(there) else "nothing"


def frontier_chart(section: Section, stem: str) -> Drawn:
    """Accuracy against length of every model, with the Pareto front."""
    points = [
        Point(m.name, m.look, m.estimates["length"], m.estimates["accuracy"])
        for m in section.models
    ]
    front = pareto_front(
        np.array([p.x.value for p in points]), np.array([p.y.value for p in points])
    )
    best = ", ".join(points[index].name for index in front)
    front_note = f"On the Pareto front, by the points and not their intervals: {best}."
    each = "; ".join(
        f"{p.name}: {told(p.y, 'accuracy').value} at {told(p.x, 'length').value} tokens"
        for p in points
    )
    chart = frontier(
        *(f"frontier-{stem}", f"Accuracy against length: {section.title}", points, front),
        x_label="mean length, tokens",
        description=f"{each}. On the Pareto front: {best}.",
    )
    return Drawn("Accuracy against length", "mean tokens", chart, front_note)


def budget_chart(section: Section, stem: str) -> Drawn:
    """Accuracy if every completion were cut after B tokens."""
    banded = len(section.models) <= _BANDS
    shown = []
    for model in section.models:
        band = accuracy_within([outcomes_of(one) for one in model.members], banded=banded)
        shown.append(Curve(model.name, model.look, band))
    chart = curves(
        *(f"budget-{stem}", f"Accuracy within a budget: {section.title}", shown),
        x_label="budget, tokens",
        description="Share of the completions that are right and no longer than the budget: "
        + "; ".join(f"{c.name} {_last(c, -1)} at {c.band.x[-1]} tokens" for c in shown),
    )
    note = "Right, and no longer than so many tokens" + ("; bands: 95%." if banded else ".")
    return Drawn("Accuracy within a budget", "", chart, note)


def information_chart(section: Section, stem: str) -> Drawn:
    """Where in the thinking the information sits."""
    title, unit = "Where the information sits", "nats a token"
    shown, notes, missing = [], [], []
    for model in section.models:
        seen = [i for one in model.members for i in one.inspections]
        thinking = [one for one in seen if one.thinking_length]
        if not thinking:
            missing.append(model.name)
            continue
        shown.append(Curve(model.name, model.look, information_curve(thinking)))
        prompts = len({one.prompt for one in thinking})
        many = f"{len(thinking)} completions of {prompts} problem{'s' * (prompts != 1)}"
        left_out = f", {len(seen) - len(thinking)} without thinking left out"
        notes.append(f"{model.name}: {many}{left_out * (len(seen) > len(thinking))}")
    alike = {note.partition(": ")[2] for note in notes}
    if len(notes) > 1 and len(alike) == 1:
        notes = [f"{alike.pop()} of each model" + " shown" * bool(missing)]
    if missing:
        notes.append(f"no inspections of {_named(missing, 'models')} (….inspections.json)")
    notes.append("bands: 95% over problems")
    if not shown:
        why = "Not drawn: no file of inspections (….inspections.json) lies beside the results."
        return Drawn(title, unit, None, why)
    peaks = "; ".join(
        f"{c.name} at most {np.max(c.band.middle):.3f} at {c.band.x[np.argmax(c.band.middle)]:.0%}"
        for c in shown
    )
    chart = curves(
        *(f"where-{stem}", f"Information by position: {section.title}", shown),
        x_label="position in the thinking, 0 = begin, 1 = end",
        description=f"Mean informativeness over the relative position: {peaks}.",
        rule=True,
    )
    return Drawn(title, unit, chart, _sentence(notes))


def length_charts(section: Section, stem: str) -> list[Drawn]:
    """Lengths of right and wrong answers: a chart for each model, on the same bars and axes."""
    joined = [_joined(model) for model in section.models]
    limits = [_limit(model) for model in section.models]
    longest = max(int(length.max()) for length, *_ in joined)
    edges = length_edges(max([longest, *(limit or 0 for limit in limits)]))
    counts = [length_counts(length, right, edges) for length, right, _ in joined]
    tops = np.max([c.max(1) / c.sum() for c in counts], axis=0)
    drawn = []
    names: set[str] = set()
    for model, (_, right, ended), limit, bars in zip(
        section.models, joined, limits, counts, strict=True
    ):
        cut = f"{1 - ended.mean():.1%} cut at the limit" + (f" of {limit}" if limit else "")
        means = " and ".join(
            f"{told(model.estimates.get(f'length_{which}'), 'length').value} tokens where {word}"
            for which, word, some in (
                ("correct", "right", right.any()),
                ("wrong", "wrong", not right.all()),
            )
            if some
        )
        note = f"{right.mean():.1%} right; {means}; {cut}."
        chart = histogram(
            *(f"lengths-{stem}-{slug(model.name, names)}", f"{model.name}: {section.title}"),
            *(edges, bars),
            index=model.look,
            tops=(float(tops[0]), float(tops[1])),
            limit=limit,
            description=f"Shares of {bars.sum()} completions by length, right ones upwards, "
            f"wrong ones downwards. {note}",
        )
        drawn.append(Drawn(model.name, "", chart, note))
    return drawn


def _joined(model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, verdicts and ends of all completions of all seeds, flat."""
    parts = [(one.length, one.correct, one.finished) for one in model.members]
    length, right, ended = (
        np.concatenate([x.ravel() for x in p]) for p in zip(*parts, strict=True)
    )
    return length, right, ended


def _limit(model: Model) -> int | None:
    """max_completion_length, if all seeds have the same."""
    found = {one.settings.get("max_completion_length") for one in model.members}
    limit = found.pop() if len(found) == 1 else None
    return limit if isinstance(limit, int) and 0 < limit < 10**7 else None


def selection_chart(lines: Sequence[Line]) -> Drawn | None:
    """What the candidate checkpoints scored on the selection split; None without candidates."""
    shown, chosen = [], []
    names: dict[str, None] = {}
    for line in lines:
        for run in line.runs:
            rows = [r for r in run.candidates if r.get("criterion") in _CRITERIA]
            rows = [r for r in rows if _number(r, "step") * _number(r, r["criterion"]) >= 0]
            if not rows:
                continue
            criterion = rows[-1]["criterion"]
            name, factor = _CRITERIA[criterion]
            names |= {name: None}
            values = [
                [factor * _number(row, f"{criterion}{end}") for row in rows]
                for end in ("", "_low", "_high")
            ]
            steps = np.array([row["step"] for row in rows], float)
            shown.append(Curve(line.name, line.look, Band(steps, *map(np.array, values))))
            best = [f"{row['step']:g}" for row in rows if row.get("chosen")]
            chosen.append(f"{line.name}, seed {run.config['seed']}: step {', '.join(best) or '–'}")
    if not shown:
        return None
    unit = " or ".join(names)
    note = f"On training problems that are held out; bands: 95%. Chosen: {'; '.join(chosen)}."
    chart = curves(
        *("selection", f"Choosing a checkpoint: {unit}", shown),
        x_label="step",
        description=f"{unit} of each checkpoint. {note}",
    )
    return Drawn("Choosing a checkpoint", unit, chart, note)


def _number(row: dict, name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan
