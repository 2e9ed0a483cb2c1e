"""What a report compares: models on the same problems, and the initial model of each."""

import math
import re
from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

from iapo_jax.evaluation.estimates import (
    Measured,
    at_matched_length,
    differences,
    estimates,
    measure,
)
from iapo_jax.evaluation.intervals import Estimate
from iapo_jax.information.inspection import visible
from iapo_jax.report.grouping import RunGroup, group_seeds, repeated_seeds
from iapo_jax.report.results import Evaluation, Run
from iapo_jax.report.rows import Row, evaluation_rows, run_rows
from iapo_jax.report.samples import Samples

_SHARED = 0.9  # two evaluations are compared if they share this part of the larger one's problems


class Model(NamedTuple):
    """One model, or the seeds of one method, on one dataset: a row of the table."""

    name: str
    style: int
    members: tuple[Samples, ...]
    estimates: dict[str, Estimate]
    baseline: str | None
    differences: dict[str, Estimate]  # from the baseline, on the same problems


class Section(NamedTuple):
    """Everything that was evaluated on the same problems."""

    title: str
    models: tuple[Model, ...]
    notes: list[str]


class Report(NamedTuple):
    """What a report shows."""

    groups: tuple[RunGroup, ...]
    sections: tuple[Section, ...]
    notes: list[str]


def compare(found: Sequence[Run | Evaluation]) -> Report:
    """Groups the seeds, names what differs, and puts results on the same problems side by side."""
    groups = group_seeds([one for one in found if isinstance(one, Run)])
    evaluations = [one for one in found if isinstance(one, Evaluation)]
    known = run_rows(groups)
    rows = [*known, *evaluation_rows(evaluations, known, groups)]
    notes = [note for one in found for note in one.notes] + repeated_seeds(groups)
    return Report(groups=groups, sections=_sections(rows), notes=notes)


def _sections(rows: Iterable[Row]) -> tuple[Section, ...]:
    parts: list[list[Row]] = []
    for row in rows:
        fitting = (part for part in parts if _fits(row.members[0], part[0].members[0]))
        part = next(fitting, None)
        parts.append([row]) if part is None else part.append(row)
    titles = [visible(part[0].members[0].record.dataset) for part in parts]
    sections = []
    for title, part in zip(titles, parts, strict=True):
        if titles.count(title) > 1:  # one name, different problems
            title += f", as in {visible(str(part[0].members[0].path.parent))}"
        part, notes = _on_shared_problems(_with_distinct_names(part))
        models = _models(part)
        sections.append(Section(title, models, notes + _different_settings(models)))
    return tuple(sections)


def _fits(one: Samples, other: Samples) -> bool:
    """Whether both cover the same problems, except some that were too long for one model."""
    if one.record.dataset != other.record.dataset:
        return False
    answers = [dict(zip(s.record.rows, s.record.answers, strict=True)) for s in (one, other)]
    shared = answers[0].keys() & answers[1].keys()
    same = all(answers[0][row] == answers[1][row] for row in shared)
    return same and len(shared) >= _SHARED * max(map(len, answers))


def _with_distinct_names(part: Sequence[Row]) -> list[Row]:
    """Adds the evaluation's directory to a name that another source also uses on these problems."""
    owners: dict[str, Evaluation | None] = {}
    for row in part:
        owners.setdefault(row.name, row.source)

    def distinct(name: str | None, row: Row) -> str | None:
        if name is None or owners.get(name, row.source) is row.source:
            return name
        return f"{name} ({visible(str(row.members[0].path.parent))})"

    return [
        row._replace(name=distinct(row.name, row), baseline=distinct(row.baseline, row))
        for row in part
    ]


def _on_shared_problems(part: list[Row]) -> tuple[list[Row], list[str]]:
    records = [member.record for row in part for member in row.members]
    shared = set.intersection(*(set(record.rows) for record in records))
    most = max(len(record.rows) for record in records)
    if all(len(record.rows) == len(shared) for record in records):
        return part, []
    note = f"{most - len(shared)} of {most} problems are left out, because some models lack them"
    rows = []
    for row in part:
        members = tuple(m._replace(record=m.record.on_rows(shared)) for m in row.members)
        rows.append(row._replace(members=members))
    return rows, [note]


def _models(part: Sequence[Row]) -> tuple[Model, ...]:
    ks = _ks(part)
    budgets = sorted({int(n) for row in part for n in _numbers(row, "accuracy_within@")})
    measured = {
        row.name: measure([m.record.outcomes() for m in row.members], ks, budgets, stream=stream)
        for stream, row in enumerate(part)
    }
    return tuple(_model(row, measured) for row in part)


def _model(row: Row, measured: dict[str, Measured]) -> Model:
    model, base = measured[row.name], measured.get(row.baseline)
    found, gaps = estimates(model), {}
    if base is not None:
        gaps = differences(model, base)
        gaps["accuracy_at_matched_length"] = at_matched_length(model, base).difference
    if row.source is not None:  # the evaluation's own summary has priority
        found |= _of_summary(row, row.source.metrics, None, found)
        gaps |= _of_summary(row, row.source.differences, row.base_label, gaps)
    return Model(
        name=row.name,
        style=row.style,
        members=row.members,
        # length@k repeats length for every k
        estimates={name: x for name, x in found.items() if not name.startswith("length@")},
        baseline=None if base is None else row.baseline,
        differences={name: x for name, x in gaps.items() if not name.startswith("length@")},
    )


def _ks(part: Sequence[Row]) -> list[int]:
    """The k of the evaluation, or powers of 2, for which every model has enough samples."""
    most = min(len(member.record.correct[0]) for row in part for member in row.members)
    named = {int(k) for row in part for k in _numbers(row, "pass@")}
    return sorted(k for k in named or {2**e for e in range(12)} if 1 <= k <= most)


def _numbers(row: Row, prefix: str) -> list[str]:
    metrics = row.source.metrics if row.source else []
    found = (re.fullmatch(re.escape(prefix) + r"(\d{1,9})", one["name"]) for one in metrics)
    return [match[1] for match in found if match]


def _of_summary(
    row: Row, rows: Iterable[dict], baseline: str | None, known: Container[str]
) -> dict[str, Estimate]:
    """The estimates of a model, or its differences from a baseline, in an evaluation's summary.

    Args:
      known: the metrics that the report shows; others are ignored.
    """
    record = row.members[0].record
    key = (record.model, record.dataset, baseline)
    return {
        one["name"]: Estimate(*(_number(one.get(part)) for part in Estimate._fields))
        for one in rows
        if (one["model"], one["dataset"], one.get("baseline")) == key and one["name"] in known
    }


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _different_settings(models: Sequence[Model]) -> list[str]:
    """A sentence for each setting, except for the seed, in which the models of a section differ."""
    notes = []
    settings = {model.name: model.members[0].record.settings for model in models}
    for name in dict.fromkeys(name for one in settings.values() for name in one):
        values: dict[str, list[str]] = {}
        for model, one in settings.items():
            values.setdefault(visible(str(one.get(name))), []).append(model)
        if name != "seed" and len(values) > 1:
            listed = [f"{value} for {', '.join(owners)}" for value, owners in values.items()]
            notes.append(f"different sampling settings: {visible(name)} is {'; '.join(listed)}")
    return notes
