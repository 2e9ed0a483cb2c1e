"""Everything that was evaluated, under the name and with the look that it has in a report."""

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from iapo_jax.information.inspection import visible
from iapo_jax.report.grouping import Line
from iapo_jax.report.results import Evaluation, Run
from iapo_jax.report.samples import Samples

START = -1  # the look of a model before training


class Entry(NamedTuple):
    """One model, or the seeds of one method, on one data set."""

    name: str
    look: int
    members: tuple[Samples, ...]  # on the same problems
    baseline: str | None  # the name of another entry
    source: Evaluation | None = None
    base_label: str | None = None  # the baseline as the source names it


def problems_of(one: Samples) -> tuple[str, str]:
    """What two results must share to be compared: the data set, its rows and gold answers."""
    return one.dataset, json.dumps([one.rows, one.answers])


def _by_problems(members: Iterable[Samples]) -> dict[tuple[str, str], tuple[Samples, ...]]:
    found: dict[tuple[str, str], tuple[Samples, ...]] = {}
    for one in members:
        found[problems_of(one)] = (*found.get(problems_of(one), ()), one)
    return found


def _start_of(run: Run) -> tuple[str, ...]:
    """What two runs must share to begin at the same model, sampled in the same way."""
    model, before = run.config["model"], run.before
    settings = {name: value for name, value in before.settings.items() if name != "seed"}
    path = str(model.get("path") or model.get("config") or "")
    return (
        *(path, str(model.get("revision")), before.fingerprint),
        json.dumps(settings, sort_keys=True, default=str),
        *problems_of(before),
    )


def run_entries(lines: Iterable[Line]) -> list[Entry]:
    """The start models, each once for all runs that share it, and the trained ones."""
    starts: dict[tuple, dict[bytes, Samples]] = {}
    for run in (run for line in lines for run in line.runs if run.before is not None):
        # The same seed under two methods gives the same samples: they count once.
        same = run.before.correct.tobytes() + run.before.length.tobytes()
        starts.setdefault(_start_of(run), {}).setdefault(same, run.before)
    names: dict[tuple, str] = {}
    for key in starts:
        beside = [other for other in starts if other[-2:] == key[-2:]]
        name = "start" if len(beside) == 1 else f"start ({visible(key[0])})"
        same = sum(names.get(other, "").startswith(name) for other in beside)
        name += f" {same + 1}" * bool(same)  # sampled in another way, as the section says
        names[key] = name
    entries = [
        Entry(names[key], START, tuple(members.values()), None) for key, members in starts.items()
    ]
    for line in lines:
        begun = next((run for run in line.runs if run.before is not None), None)
        ended = [run.after for run in line.runs if run.after is not None]
        for problems, members in _by_problems(ended).items():
            fits = begun is not None and problems_of(begun.before) == problems
            baseline = names[_start_of(begun)] if fits else None
            entries.append(Entry(line.name, line.look, members, baseline))
    return entries


def evaluation_entries(
    evaluations: Sequence[Evaluation], known: Sequence[Entry], lines: Sequence[Line]
) -> list[Entry]:
    """The labeled models of every evaluation, and what they are compared with there.

    Models whose parameters are those of `known` entries look as these do.
    """
    of_runs = {m.fingerprint: entry for entry in known for m in entry.members if m.fingerprint}
    taken = {line.name for line in lines} | {entry.name for entry in known}
    looks: dict[str, int] = {}
    entries = []
    for one in evaluations:
        labels = _labels(one)
        trained = {row["model"] for row in one.differences}
        bases = {row.get("baseline") for row in one.differences} - trained
        same = {label: _same(label, one, of_runs) for label in labels}
        names = {
            label: label
            if same[label] is not None and same[label].name == label
            else _name(label, one, evaluations, taken)
            for label in labels
        }
        for label in labels:
            name, of_label = visible(names[label]), [s for s in one.samples if s.model == label]
            if label in bases:
                look = START
            elif same[label] is not None:
                look = same[label].look
            else:
                look = looks.setdefault(name, len(lines) + len(looks))
            for members in _by_problems(of_label).values():
                base = next(
                    (
                        row.get("baseline")
                        for row in one.differences
                        if (row["model"], row["dataset"]) == (label, members[0].dataset)
                    ),
                    None,
                )
                baseline = visible(names[base]) if base in names else None
                entries.append(Entry(name, look, members, baseline, one, base))
    return entries


def _labels(one: Evaluation) -> list[str]:
    """In the order of its summary, which is that of the command line; else of the files."""
    labels = dict.fromkeys(s.model for s in one.samples)
    told = [row["model"] for row in one.figures if row["model"] in labels]
    return list(dict.fromkeys([*told, *labels]))


def _same(label: str, one: Evaluation, of_runs: dict[str, Entry]) -> Entry | None:
    """The entry of runs that has the label's parameters, if one has all of them."""
    found = [of_runs.get(s.fingerprint) for s in one.samples if s.model == label]
    return found[0] if all(e is not None and e.name == found[0].name for e in found) else None


def _name(label: str, one: Evaluation, others: Sequence[Evaluation], taken: set[str]) -> str:
    """The label; with its directory if it is taken, or stands for another model elsewhere."""
    having = [e for e in others if any(s.model == label for s in e.samples)]
    own = [[s for s in e.samples if s.model == label] for e in having]
    same = len({frozenset((s.source, s.step) for s in part) for part in own}) == 1
    shown = [data for part in own for data in {problems_of(s) for s in part}]
    clear = label not in taken and same and len(set(shown)) == len(shown)
    return label if clear else f"{label} ({one.directory})"
