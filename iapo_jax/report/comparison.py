"""What is compared with what: models on the same problems, and the start that they came from."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iapo_jax.evaluation.metrics import (
    Estimate,
    Outcomes,
    Resample,
    Terms,
    accuracy_at_matched_length,
    figure_terms,
    resample,
)
from iapo_jax.evaluation.metrics import (
    difference as paired_difference,
)
from iapo_jax.evaluation.metrics import (
    estimate as estimate_figure,
)
from iapo_jax.information.inspection import visible
from iapo_jax.report.entries import Entry, evaluation_entries, run_entries
from iapo_jax.report.grouping import Line, group_seeds, repeated_seeds
from iapo_jax.report.results import Evaluation, Run
from iapo_jax.report.samples import Samples, only_rows

_PER = 100  # tokens that a ratio is told for


_SHARED = 0.9  # of the problems of the larger of two evaluations, to be compared


class Model(NamedTuple):
    """One model, or the seeds of one method, on one data set: a row of the table."""

    name: str
    look: int
    members: tuple[Samples, ...]
    estimates: dict[str, Estimate]
    baseline: str | None
    differences: dict[str, Estimate]  # to the baseline, on the same problems


class Section(NamedTuple):
    """Everything that was evaluated on one and the same problems."""

    title: str
    models: tuple[Model, ...]
    notes: list[str]


class Report(NamedTuple):
    """What a report shows."""

    lines: tuple[Line, ...]
    sections: tuple[Section, ...]
    notes: list[str]


def compare(found: Sequence[Run | Evaluation]) -> Report:
    """Groups the seeds, names what differs, and puts what shares its problems side by side."""
    lines = group_seeds([one for one in found if isinstance(one, Run)])
    evaluations = [one for one in found if isinstance(one, Evaluation)]
    known = run_entries(lines)
    entries = [*known, *evaluation_entries(evaluations, known, lines)]
    notes = [note for one in found for note in one.notes] + repeated_seeds(lines)
    return Report(lines, _sections(entries), notes)


def _sections(entries: Iterable[Entry]) -> tuple[Section, ...]:
    groups: list[list[Entry]] = []
    for entry in entries:
        fitting = (group for group in groups if _fits(entry.members[0], group[0].members[0]))
        group = next(fitting, None)
        groups.append([entry]) if group is None else group.append(entry)
    titles = [visible(group[0].members[0].dataset) for group in groups]
    sections = []
    for title, group in zip(titles, groups, strict=True):
        if titles.count(title) > 1:  # one name, other problems
            title += f", as in {visible(str(group[0].members[0].path.parent))}"
        group, notes = _on_shared_problems(_told_apart(group))
        models = _models(group)
        sections.append(Section(title, models, notes + _sampled_differently(models)))
    return tuple(sections)


def _fits(one: Samples, other: Samples) -> bool:
    """Whether both are of the same problems, but for some that were too long for one model."""
    if one.dataset != other.dataset:
        return False
    golds = [dict(zip(s.rows, s.answers, strict=True)) for s in (one, other)]
    shared = golds[0].keys() & golds[1].keys()
    same = all(golds[0][row] == golds[1][row] for row in shared)
    return same and len(shared) >= _SHARED * max(map(len, golds))


def _told_apart(group: Sequence[Entry]) -> list[Entry]:
    """A name that another source has on these problems too gets the evaluation's directory."""
    owners: dict[str, Evaluation | None] = {}
    for entry in group:
        owners.setdefault(entry.name, entry.source)

    def own(name: str | None, entry: Entry) -> str | None:
        if name is None or owners.get(name, entry.source) is entry.source:
            return name
        return f"{name} ({visible(str(entry.members[0].path.parent))})"

    return [e._replace(name=own(e.name, e), baseline=own(e.baseline, e)) for e in group]


def _on_shared_problems(group: list[Entry]) -> tuple[list[Entry], list[str]]:
    members = [one for entry in group for one in entry.members]
    shared = set.intersection(*(set(one.rows) for one in members))
    most = max(len(one.rows) for one in members)
    if all(len(one.rows) == len(shared) for one in members):
        return group, []
    note = f"{most - len(shared)} of {most} problems, which not all models have, are left out"
    return [
        entry._replace(members=tuple(only_rows(one, shared) for one in entry.members))
        for entry in group
    ], [note]


def _models(group: Sequence[Entry]) -> tuple[Model, ...]:
    ks = _ks(group)
    budgets = sorted({int(n) for entry in group for n in _numbers(entry, "accuracy_within@")})
    outcomes = {entry.name: [outcomes_of(one) for one in entry.members] for entry in group}
    terms = {name: _terms(seeds, ks, budgets) for name, seeds in outcomes.items()}
    draws = {
        entry.name: resample(len(entry.members[0].rows), len(entry.members), stream=index)
        for index, entry in enumerate(group)
    }
    models = []
    for entry in group:
        own, base = (terms[entry.name], draws[entry.name]), None
        if entry.baseline in terms:
            base = (terms[entry.baseline], draws[entry.baseline])
        estimates, differences = _estimates(own, base)
        if base is not None:
            matched = accuracy_at_matched_length(
                *(outcomes[entry.name], draws[entry.name]),
                *(outcomes[entry.baseline], draws[entry.baseline]),
            )
            differences["accuracy_at_matched_length"] = matched.difference
        if entry.source is not None:  # what the evaluation tells itself goes first
            estimates |= _told(entry, entry.source.figures, None)
            differences |= _told(entry, entry.source.differences, entry.base_label)
        baseline = entry.baseline if base else None
        name, look = entry.name, entry.look
        models.append(Model(name, look, entry.members, estimates, baseline, differences))
    return tuple(models)


def _ks(group: Sequence[Entry]) -> list[int]:
    """The k of the evaluation, or powers of 2, that the samples of every model allow."""
    most = min(one.correct.shape[1] for entry in group for one in entry.members)
    told = {int(k) for entry in group for k in _numbers(entry, "pass@")}
    return sorted(k for k in told or {2**e for e in range(12)} if 1 <= k <= most)


def _numbers(entry: Entry, prefix: str) -> list[str]:
    rows = entry.source.figures if entry.source else []
    found = (re.fullmatch(re.escape(prefix) + r"(\d{1,9})", row["name"]) for row in rows)
    return [match[1] for match in found if match]


def outcomes_of(one: Samples) -> Outcomes:
    """The arrays that figures are made of."""
    return Outcomes(one.correct, one.length, one.finished, one.votes)


def _terms(
    seeds: Sequence[Outcomes], ks: Sequence[int], budgets: Sequence[int]
) -> dict[str, list[Terms]]:
    """The terms of every seed by the name of the figure."""
    parts = [figure_terms(one, ks, budgets) for one in seeds]
    names = [name for name in parts[0] if not name.startswith("length@")]  # each is `length`
    return {name: [_scaled(name, part[name]) for part in parts] for name in names}


def _scaled(name: str, terms: Terms) -> Terms:
    """A ratio by 100 tokens."""
    return Terms(_PER * terms.numerator, terms.denominator) if name.startswith("ratio@") else terms


def _estimates(
    own: tuple[dict, Resample], base: tuple[dict, Resample] | None
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    terms, drawn = own
    estimates = {name: estimate_figure(seeds, drawn) for name, seeds in terms.items()}
    if base is None:
        return estimates, {}
    differences = {
        name: paired_difference(seeds, drawn, base[0][name], base[1])
        for name, seeds in terms.items()
    }
    return estimates, differences


def _told(entry: Entry, rows: Iterable[dict], baseline: str | None) -> dict[str, Estimate]:
    """Figures of the evaluation's summary; ratios stay ours, by 100 tokens."""
    key = (entry.members[0].model, entry.members[0].dataset, baseline)
    number = lambda x: float(x) if isinstance(x, int | float) else math.nan  # noqa: E731
    return {
        row["name"]: Estimate(*(number(row.get(part)) for part in Estimate._fields))
        for row in rows
        if (row["model"], row["dataset"], row.get("baseline")) == key
        and not row["name"].startswith(("ratio@", "length@"))
    }


def _sampled_differently(models: Sequence[Model]) -> list[str]:
    """Settings, but for the seed, in which the models of one section differ."""
    notes = []
    settings = {model.name: model.members[0].settings for model in models}
    for name in dict.fromkeys(name for one in settings.values() for name in one):
        values: dict[str, list[str]] = {}
        for model, one in settings.items():
            values.setdefault(visible(str(one.get(name))), []).append(model)
        if name != "seed" and len(values) > 1:
            told = "; ".join(f"{value} for {', '.join(models)}" for value, models in values.items())
            notes.append(f"sampled in different ways: {visible(name)} is {told}")
    return notes
