"""The panels of a report: each a chart, or a sentence that says why there is none."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.report.charts import Chart, Curve, Point, curves, frontier, histogram
from iapo_jax.report.comparison import Model, Section
from iapo_jax.report.grouping import RunGroup, metric_band
from iapo_jax.report.methods_table import format_cell
from iapo_jax.report.series import (
    Band,
    accuracy_within,
    information_curve,
    length_counts,
    length_edges,
    pareto_front,
)


class LearningCurve(NamedTuple):
    """A metric of metrics.jsonl that has a panel."""

    metric: str
    file: str
    title: str
    unit: str


LEARNING = (
    LearningCurve("reward", "reward", "Reward", "mean over completions"),
    LearningCurve("accuracy", "accuracy", "Accuracy", "share of correct completions"),
    LearningCurve("completions/mean_length", "length", "Length", "mean tokens per completion"),
    LearningCurve("entropy", "entropy", "Entropy", "nats per token"),
    LearningCurve("kl", "kl", "KL to the initial model", "nats per token"),
    LearningCurve(
        "iapo/information_per_token", "information", "Information", "nats per thinking token"
    ),
)
_SFT = LearningCurve("loss", "loss", "Loss of supervised fine-tuning", "nats per token")

# Criterion of selection.jsonl -> its name here, and the factor that goes with the name.
_CRITERIA = {"accuracy": ("accuracy", 1), "ratio": ("accuracy per 100 tokens", 100)}
_MOST_BANDS = 4  # models whose bands can still be told apart


class Panel(NamedTuple):
    """A place in the report: a chart, or the reason why there is none."""

    title: str
    unit: str
    chart: Chart | None
    note: str


def slug(text: str, taken: set[str]) -> str:
    """A file name for a text, distinct from those in `taken`, to which it is added."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "data"
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    name = next(n for n in itertools.chain([plain], numbered) if n not in taken)
    taken.add(name)
    return name


def learning_panels(groups: Sequence[RunGroup], smooth: int) -> list[Panel]:
    """A panel for each metric, with all groups in it."""
    tuned = [group for group in groups if not _has_reward(group)]
    panels = [_learning(groups, smooth, curve) for curve in LEARNING]
    if any("loss" in run.metrics for group in tuned for run in group.runs):
        panels.append(_learning(tuned, smooth, _SFT))
    return panels


def _has_reward(group: RunGroup) -> bool:
    return any("reward" in run.metrics for run in group.runs)


def _learning(groups: Sequence[RunGroup], smooth: int, curve: LearningCurve) -> Panel:
    shown, notes, missing = [], [], []
    for group in groups:
        band, note = metric_band(group, curve.metric, smooth)
        if note:
            notes.append(note)
        if band is not None:
            shown.append(Curve(group.name, group.style, band))
        elif not note:
            missing.append(group.name)
    if missing:
        notes.append(f"Not logged by {_named(missing, 'groups of runs')}")
    if not shown:
        why = f"Not drawn: no run has logged `{curve.metric}`."
        return Panel(title=curve.title, unit=curve.unit, chart=None, note=why)
    ends = "; ".join(f"{c.name} from {_value(c, 0)} to {_value(c, -1)}" for c in shown)
    chart = curves(
        curve.file,
        f"{curve.title}: {curve.unit}",
        shown,
        x_label="step",
        description=f"{curve.title} ({curve.unit}) over training steps: {ends}.",
    )
    return Panel(title=curve.title, unit=curve.unit, chart=chart, note=_sentence(notes))


def _sentence(notes: Sequence[str]) -> str:
    return f"{'; '.join(notes)}." if notes else ""


def _named(names: Sequence[str], what: str) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} {what}"


def _value(curve: Curve, index: int) -> str:
    finite = curve.band.middle[np.isfinite(curve.band.middle)]
    return f"{finite[index]:.4g}" if len(finite) else "nothing"


def frontier_panel(section: Section, stem: str) -> Panel:
    """Accuracy against length of every model, with the Pareto front."""
    points = [
        Point(m.name, m.style, m.estimates["length"], m.estimates["accuracy"])
        for m in section.models
    ]
    front = pareto_front(
        np.array([p.x.value for p in points]), np.array([p.y.value for p in points])
    )
    best = ", ".join(points[index].name for index in front)
    each = "; ".join(
        f"{p.name}: {format_cell(p.y, 'accuracy').value} at "
        f"{format_cell(p.x, 'length').value} tokens"
        for p in points
    )
    chart = frontier(
        f"frontier-{stem}",
        f"Accuracy against length: {section.title}",
        points,
        front,
        x_label="mean length, tokens",
        description=f"{each}. On the Pareto front: {best}.",
    )
    return Panel(
        title="Accuracy against length",
        unit="mean tokens",
        chart=chart,
        note=f"On the Pareto front (judged by the points, not the intervals): {best}.",
    )


def budget_panel(section: Section, stem: str) -> Panel:
    """The accuracy if every completion were truncated after B tokens."""
    banded = len(section.models) <= _MOST_BANDS
    shown = []
    for model in section.models:
        outcomes = [member.record.outcomes() for member in model.members]
        shown.append(Curve(model.name, model.style, accuracy_within(outcomes, banded=banded)))
    ends = "; ".join(f"{c.name} {_value(c, -1)} at {c.band.x[-1]} tokens" for c in shown)
    chart = curves(
        f"budget-{stem}",
        f"Accuracy within a budget: {section.title}",
        shown,
        x_label="budget, tokens",
        description="Share of the completions that are correct and no longer than the budget: "
        + ends,
    )
    bands = "; bands: 95% intervals" if banded else ""
    note = f"The share of completions that are correct and no longer than the budget{bands}."
    return Panel(title="Accuracy within a budget", unit="", chart=chart, note=note)


def information_panel(section: Section, stem: str) -> Panel:
    """Where in the thinking the information sits."""
    title, unit = "Where the information sits", "nats per token"
    shown, counts, missing = [], {}, []
    for model in section.models:
        probed = [one for member in model.members for one in member.inspections]
        thinking = [one for one in probed if one.thinking_length]
        if not thinking:
            missing.append(model.name)
            continue
        shown.append(Curve(model.name, model.style, information_curve(thinking)))
        prompts = len({one.prompt for one in thinking})
        problems = "1 problem" if prompts == 1 else f"{prompts} problems"
        counts[model.name] = f"{len(thinking)} completions of {problems}"
        if len(probed) > len(thinking):
            left_out = len(probed) - len(thinking)
            counts[model.name] += f", {left_out} without thinking left out"
    if not shown:
        why = "Not drawn: no inspections (….inspections.json) were found next to the results."
        return Panel(title=title, unit=unit, chart=None, note=why)
    notes = [f"{name}: {count}" for name, count in counts.items()]
    if len(notes) > 1 and len(set(counts.values())) == 1:
        models = "each model shown" if missing else "each model"
        notes = [f"{notes[0].partition(': ')[2]} of {models}"]
    if missing:
        notes.append(f"no inspections of {_named(missing, 'models')} (….inspections.json)")
    notes.append("bands: 95% intervals over problems")
    peaks = "; ".join(
        f"{c.name} peaks at {c.band.x[np.argmax(c.band.middle)]:.0%}: {np.max(c.band.middle):.3f}"
        for c in shown
    )
    chart = curves(
        f"where-{stem}",
        f"Information by position: {section.title}",
        shown,
        x_label="position in the thinking, 0 = start, 1 = end",
        description=f"Mean informativeness over the relative position: {peaks}.",
        rule=True,
    )
    return Panel(title=title, unit=unit, chart=chart, note=_sentence(notes))


class _Lengths(NamedTuple):
    """All completions of all seeds of a model, flat."""

    length: np.ndarray
    correct: np.ndarray
    finished: np.ndarray
    limit: int | None


def length_panels(section: Section, stem: str) -> list[Panel]:
    """Lengths of correct and incorrect answers: a panel for each model, with the same bars."""
    found = [_lengths(model) for model in section.models]
    longest = max(max(int(one.length.max()), one.limit or 0) for one in found)
    edges = length_edges(longest)
    counts = [length_counts(one.length, one.correct, edges) for one in found]
    tops = np.max([c.max(1) / c.sum() for c in counts], axis=0)
    panels, names = [], set()
    for model, one, bars in zip(section.models, found, counts, strict=True):
        note = _length_note(model, one)
        chart = histogram(
            f"lengths-{stem}-{slug(model.name, names)}",
            f"{model.name}: {section.title}",
            edges,
            bars,
            style=model.style,
            tops=(float(tops[0]), float(tops[1])),
            limit=one.limit,
            description=f"Shares of {bars.sum()} completions by length, correct ones upwards, "
            f"incorrect ones downwards. {note}",
        )
        panels.append(Panel(title=model.name, unit="", chart=chart, note=note))
    return panels


def _length_note(model: Model, found: _Lengths) -> str:
    means = []
    for name, word, some in (
        ("length_correct", "correct", found.correct.any()),
        ("length_wrong", "incorrect", not found.correct.all()),
    ):
        if some:
            means.append(f"{format_cell(model.estimates.get(name), name).value} tokens if {word}")
    limit = f" at {found.limit} tokens" if found.limit else ""
    truncated = f"{1 - found.finished.mean():.1%} truncated{limit}"
    return f"{found.correct.mean():.1%} correct; {' and '.join(means)}; {truncated}."


def _lengths(model: Model) -> _Lengths:
    outcomes = [member.record.outcomes() for member in model.members]
    limits = {member.record.settings.get("max_completion_length") for member in model.members}
    limit = limits.pop() if len(limits) == 1 else None  # only if all seeds have the same
    return _Lengths(
        length=np.concatenate([one.length.ravel() for one in outcomes]),
        correct=np.concatenate([one.correct.ravel() for one in outcomes]),
        finished=np.concatenate([one.finished.ravel() for one in outcomes]),
        limit=limit if isinstance(limit, int) and 0 < limit < 10**7 else None,
    )


def selection_panel(groups: Sequence[RunGroup]) -> Panel | None:
    """The results of the candidate checkpoints on the selection split; None without candidates."""
    shown, chosen = [], []
    units: dict[str, None] = {}
    for group in groups:
        for run in group.runs:
            rows = [row for row in run.candidates if _is_candidate(row)]
            if not rows:
                continue
            criterion = rows[-1]["criterion"]
            unit, factor = _CRITERIA[criterion]
            units |= {unit: None}
            steps = np.array([row["step"] for row in rows], float)
            values = [
                np.array([factor * _number(row, f"{criterion}{end}") for row in rows])
                for end in ("", "_low", "_high")
            ]
            shown.append(Curve(group.name, group.style, Band(steps, *values)))
            best = ", ".join(f"{row['step']:g}" for row in rows if row.get("chosen"))
            chosen.append(f"{group.name}, seed {run.config['seed']}: step {best or '–'}")
    if not shown:
        return None
    unit = " or ".join(units)
    note = f"On held-out training problems; bands: 95% intervals. Chosen: {'; '.join(chosen)}."
    chart = curves(
        "selection",
        f"Choosing a checkpoint: {unit}",
        shown,
        x_label="step",
        description=f"{unit} of each checkpoint. {note}",
    )
    return Panel(title="Choosing a checkpoint", unit=unit, chart=chart, note=note)


def _is_candidate(row: dict) -> bool:
    criterion = row.get("criterion")
    if not isinstance(criterion, str) or criterion not in _CRITERIA:
        return False
    return _number(row, "step") >= 0 and _number(row, criterion) >= 0


def _number(row: dict, name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else math.nan
