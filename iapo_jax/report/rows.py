"""Everything that was evaluated, under the name and with the style that it has in a report."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iapo_jax.information.inspection import visible
from iapo_jax.report.grouping import RunGroup
from iapo_jax.report.results import Evaluation, Run
from iapo_jax.report.samples import Samples

START = -1  # the style of a model before training


class Row(NamedTuple):
    """One model, or the seeds of one method, on one dataset."""

    name: str
    style: int
    members: tuple[Samples, ...]  # on the same problems
    baseline: str | None  # the name of another row
    source: Evaluation | None = None
    base_label: str | None = None  # the baseline's label in the source


def problems_of(samples: Samples) -> tuple[str, str]:
    """What two results must share to be compared: the dataset, its rows and answers."""
    record = samples.record
    return record.dataset, json.dumps([record.rows, record.answers])


def _by_problems(members: Iterable[Samples]) -> list[tuple[Samples, ...]]:
    groups: dict[tuple[str, str], tuple[Samples, ...]] = {}
    for samples in members:
        key = problems_of(samples)
        groups[key] = (*groups.get(key, ()), samples)
    return list(groups.values())


def _start_of(run: Run) -> tuple[str, ...]:
    """What two runs must share to start from the same model, sampled in the same way."""
    model, record = run.config["model"], run.before.record
    settings = {name: value for name, value in record.settings.items() if name != "seed"}
    return (
        str(model.get("path") or model.get("config") or ""),
        str(model.get("revision")),
        record.fingerprint,
        json.dumps(settings, sort_keys=True, default=str),
        *problems_of(run.before),
    )


def run_rows(groups: Sequence[RunGroup]) -> list[Row]:
    """The initial models, each once for all runs that share it, and the trained models."""
    starts: dict[tuple, dict[str, Samples]] = {}
    for run in (run for group in groups for run in group.runs if run.before is not None):
        # The same seed under two methods gives the same samples, which count once.
        same = json.dumps([run.before.record.correct, run.before.record.length])
        starts.setdefault(_start_of(run), {}).setdefault(same, run.before)
    names = _start_names(list(starts))
    rows = [
        Row(name=names[key], style=START, members=tuple(members.values()), baseline=None)
        for key, members in starts.items()
    ]
    for group in groups:
        begun = next((run for run in group.runs if run.before is not None), None)
        for members in _by_problems(run.after for run in group.runs if run.after is not None):
            comparable = begun is not None and problems_of(begun.before) == problems_of(members[0])
            baseline = names[_start_of(begun)] if comparable else None
            rows.append(Row(group.name, group.style, members, baseline))
    return rows


def _start_names(starts: Sequence[tuple]) -> dict[tuple, str]:
    """`start`, with the model's path if several initial models share the same problems."""
    names: dict[tuple, str] = {}
    for key in starts:
        beside = [other for other in starts if other[-2:] == key[-2:]]
        name = "start" if len(beside) == 1 else f"start ({visible(key[0])})"
        same = sum(names.get(other, "").startswith(name) for other in beside)
        # The same model, sampled with different settings, which the section lists.
        names[key] = f"{name} {same + 1}" if same else name
    return names


def evaluation_rows(
    evaluations: Sequence[Evaluation], known: Sequence[Row], groups: Sequence[RunGroup]
) -> list[Row]:
    """The labeled models of every evaluation, with the baselines it compares them with.

    A model that is only a baseline has the style `START`; any other model whose parameters are
    those of a `known` row has the style of that row.
    """
    of_runs = {m.record.fingerprint: row for row in known for m in row.members}
    of_runs.pop("", None)  # of records without a fingerprint
    taken = {group.name for group in groups} | {row.name for row in known}
    styles: dict[str, int] = {}
    rows = []
    for evaluation in evaluations:
        labels = _labels(evaluation)
        same = {label: _same(label, evaluation, of_runs) for label in labels}
        names = {
            label: label
            if same[label] is not None and same[label].name == label
            else _name(label, evaluation, evaluations, taken)
            for label in labels
        }
        trained = {row["model"] for row in evaluation.differences}
        bases = {row.get("baseline") for row in evaluation.differences} - trained
        for label in labels:
            name = visible(names[label])
            if label in bases:
                style = START
            elif same[label] is not None:
                style = same[label].style
            else:
                style = styles.setdefault(name, len(groups) + len(styles))
            for members in _by_problems(_of_label(evaluation, label)):
                base = _baseline(evaluation, label, members[0].record.dataset)
                baseline = visible(names[base]) if base in names else None
                rows.append(Row(name, style, members, baseline, evaluation, base))
    return rows


def _of_label(evaluation: Evaluation, label: str) -> list[Samples]:
    return [samples for samples in evaluation.samples if samples.record.model == label]


def _baseline(evaluation: Evaluation, label: str, dataset: str) -> str | None:
    """The first baseline that the summary compares a label with."""
    for row in evaluation.differences:
        if (row["model"], row["dataset"]) == (label, dataset):
            return row.get("baseline")
    return None


def _labels(evaluation: Evaluation) -> list[str]:
    """The labels in the order of the summary (that of the command line), otherwise of the files."""
    labels = dict.fromkeys(samples.record.model for samples in evaluation.samples)
    ordered = [row["model"] for row in evaluation.metrics if row["model"] in labels]
    return list(dict.fromkeys([*ordered, *labels]))


def _same(label: str, evaluation: Evaluation, of_runs: dict[str, Row]) -> Row | None:
    """The row of runs that has the label's parameters, if a single one has all of them."""
    found = [of_runs.get(s.record.fingerprint) for s in _of_label(evaluation, label)]
    same = all(row is not None and row.name == found[0].name for row in found)
    return found[0] if same else None


def _name(label: str, one: Evaluation, others: Sequence[Evaluation], taken: set[str]) -> str:
    """The label, with its directory if it is taken or names a different model elsewhere."""
    having = [members for e in others if (members := _of_label(e, label))]
    sources = {frozenset((s.record.source, s.record.step) for s in part) for part in having}
    shown = [problems for part in having for problems in {problems_of(s) for s in part}]
    clear = label not in taken and len(sources) == 1 and len(set(shown)) == len(shown)
    return label if clear else f"{label} ({one.directory})"
