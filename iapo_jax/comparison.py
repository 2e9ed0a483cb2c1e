"""What is compared with what: seeds of one config, models on one data set, their baseline."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.inspection import visible
from iapo_jax.results import Evaluation, Run, Samples
from iapo_jax.series import Band, Estimate, difference, estimate, seed_band

START = -1  # the look of a model before training
_APART = ("seed", "output_dir")  # in these alone seeds of one config differ
_NAME = 48  # characters of a name that says what differs


class Line(NamedTuple):
    """Runs of one config, which differ in the seed."""

    name: str
    look: int  # index of its colour, dashes and marker, everywhere in a report
    runs: tuple[Run, ...]


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


class _Entry(NamedTuple):
    """A model before its section is known."""

    name: str
    look: int
    members: tuple[Samples, ...]
    baseline: str | None
    source: Evaluation | None


def compare(found: Sequence[Run | Evaluation]) -> Report:
    """Groups the seeds, names what differs, and puts what shares its problems side by side."""
    runs = [one for one in found if isinstance(one, Run)]
    evaluations = [one for one in found if isinstance(one, Evaluation)]
    groups = _groups(runs)
    lines = tuple(
        Line(name, look, tuple(group))
        for look, (name, group) in enumerate(zip(_names(groups), groups, strict=True))
    )
    entries = [*_run_entries(lines), *_evaluation_entries(evaluations, lines)]
    notes = [note for one in found for note in one.notes] + _repeated_seeds(lines)
    return Report(lines, _sections(entries), notes)


def _groups(runs: Iterable[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {name: value for name, value in run.config.items() if name not in _APART}
        groups.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(run)
    return list(groups.values())


def _names(groups: list[list[Run]]) -> list[str]:
    """algorithm.name; of those that share it with what else differs, or with the directory."""
    configs = [_flat(group[0].config) for group in groups]
    methods = [visible(str(one.get("algorithm.name", "sft"))) for one in configs]
    names = []
    for method, config, group in zip(methods, configs, groups, strict=True):
        alike = [c for m, c in zip(methods, configs, strict=True) if m == method]
        name = method
        if len(alike) > 1:
            fields = {key for one in alike for key in one}
            differ = sorted(f for f in fields if len({repr(c.get(f)) for c in alike}) > 1)
            told = ", ".join(f"{f.rpartition('.')[2]}={config.get(f)}" for f in differ)
            short = {f.rpartition(".")[2] for f in differ}
            clear = len(short) == len(differ) and len(told) <= _NAME
            name = f"{method} ({visible(told if clear else str(group[0].directory))})"
        names.append(name)
    for index, name in enumerate(names):  # a field that holds another's text
        if names.count(name) > 1:
            names[index] = f"{name} ({visible(str(groups[index][0].directory))})"
    return names


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if not prefix and name in _APART:
            continue
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else None
        flat |= {f"{prefix}{name}": value} if inner is None else inner
    return flat


def _repeated_seeds(lines: Iterable[Line]) -> list[str]:
    notes = []
    for line in lines:
        seeds = [run.config["seed"] for run in line.runs]
        for seed in sorted({s for s in seeds if seeds.count(s) > 1}):
            notes.append(
                f"{line.name}: {seeds.count(seed)} runs have the seed {seed}; they are no "
                "independent seeds, and the band is too narrow"
            )
    return notes


def _run_entries(lines: Iterable[Line]) -> list[_Entry]:
    """The trained models, after the start models that they share."""
    starts: dict[tuple, dict[bytes, Samples]] = {}
    keys = {}
    for line in lines:
        for run in line.runs:
            if run.before is not None:
                model = run.config["model"]
                settings = {k: v for k, v in run.before.settings.items() if k != "seed"}
                key = (
                    _problems(run.before),
                    *(str(model.get(name)) for name in ("path", "revision", "config")),
                    json.dumps(settings, sort_keys=True, default=str),
                )
                # The same seed of two methods gives the same samples: they count once.
                same = run.before.correct.tobytes() + run.before.length.tobytes()
                starts.setdefault(key, {}).setdefault(same, run.before)
                keys.setdefault(line.name, key)
    named, entries = {}, []
    for key, members in starts.items():
        alone = sum(other[0] == key[0] for other in starts) == 1
        place = key[1] if key[1] not in ("", "None") else key[3]
        name = "start" if alone else f"start ({visible(place)})"
        while name in {entry.name for entry in entries if _problems(entry.members[0]) == key[0]}:
            name += "'"  # sampled in another way, as the section says
        named[key] = name
        entries.append(_Entry(name, START, tuple(members.values()), None, None))
    for line in lines:
        key = keys.get(line.name)
        by_problems: dict[Any, list[Samples]] = {}
        for run in line.runs:
            if run.after is not None:
                by_problems.setdefault(_problems(run.after), []).append(run.after)
        for problems, members in by_problems.items():
            baseline = named[key] if key and key[0] == problems else None
            entries.append(_Entry(line.name, line.look, tuple(members), baseline, None))
    return entries


def _evaluation_entries(
    evaluations: Iterable[Evaluation], lines: Sequence[Line]
) -> list[_Entry]:
    """The labelled models; a label that stands for two models gets its directory's name."""
    evaluations = list(evaluations)
    sources: dict[str, set] = {}
    for one in evaluations:
        for label in {s.model for s in one.samples}:
            what = frozenset((s.source, s.step) for s in one.samples if s.model == label)
            shown = frozenset(s.dataset for s in one.samples if s.model == label)
            sources.setdefault(label, set()).add((what, shown))
    taken = {line.name for line in lines} | {"start"} * bool(lines) if False else {
        line.name for line in lines
    }
    looks: dict[str, int] = {}
    entries = []
    for one in evaluations:
        baselines = {row.get("baseline") for row in one.differences}
        for label in dict.fromkeys(s.model for s in one.samples):
            parts = sources[label]
            same = len({what for what, _ in parts}) == 1
            apart = len(parts) == 1 or not frozenset.intersection(*(sets for _, sets in parts))
            count = sum(any(s.model == label for s in other.samples) for other in evaluations)
            clear = label not in taken and (count == 1 or (same and apart and len(parts) == count))
            name = visible(label if clear else f"{label} ({one.directory})")
            start = label in baselines and not any(
                row["model"] == label for row in one.differences
            )
            look = START if start else looks.setdefault(name, len(lines) + len(looks))
            for dataset in dict.fromkeys(s.dataset for s in one.samples if s.model == label):
                members = [s for s in one.samples if (s.model, s.dataset) == (label, dataset)]
                entries.append(_Entry(name, look, tuple(members), None, one))
    return entries


def _problems(one: Samples) -> tuple:
    return one.dataset, json.dumps([one.rows, one.answers])


def _sections(entries: Iterable[_Entry]) -> tuple[Section, ...]:
    by_problems: dict[tuple, list[_Entry]] = {}
    for entry in entries:
        by_problems.setdefault(_problems(entry.members[0]), []).append(entry)
    titles = [visible(key[0]) for key in by_problems]
    sections = []
    for title, (key, group) in zip(titles, by_problems.items(), strict=True):
        if titles.count(title) > 1:  # the same name, other problems
            title += f", as in {visible(str(group[0].members[0].path.parent))}"
        members = {entry.name: entry.members for entry in group}
        models = tuple(_model(entry, members) for entry in group)
        sections.append(Section(title, models, _sampled_differently(models)))
    return tuple(sections)


def _model(entry: _Entry, members: dict[str, tuple[Samples, ...]]) -> Model:
    own = [s for s in entry.members if _problems(s) == _problems(entry.members[0])]
    estimates, baseline, differences = {}, entry.baseline, {}
    if entry.source is not None:
        label, dataset = own[0].model, own[0].dataset
        fits = lambda row: (row["model"], row["dataset"]) == (label, dataset)  # noqa: E731
        estimates = _told(filter(fits, entry.source.figures))
        rows = [row for row in entry.source.differences if fits(row)]
        if rows:
            baseline = str(rows[0].get("baseline"))
            differences = _told(row for row in rows if row.get("baseline") == baseline)
    elif baseline is not None:
        differences = difference(own, members[baseline])
    shown = None if baseline is None else visible(baseline)
    return Model(entry.name, entry.look, tuple(own), estimates or estimate(own), shown, differences)


def _told(rows: Iterable[dict]) -> dict[str, Estimate]:
    value = lambda x: float(x) if isinstance(x, int | float) else float("nan")  # noqa: E731
    return {
        row["name"]: Estimate(*(value(row.get(part)) for part in Estimate._fields)) for row in rows
    }


def _sampled_differently(models: Sequence[Model]) -> list[str]:
    """Settings, but for the seed, in which the models of one section differ."""
    notes = []
    settings = {model.name: model.members[0].settings for model in models}
    for name in dict.fromkeys(name for one in settings.values() for name in one):
        values = {model: str(one.get(name)) for model, one in settings.items()}
        if name != "seed" and len(set(values.values())) > 1:
            told = ", ".join(f"{visible(value)} for {model}" for model, value in values.items())
            notes.append(f"sampled in different ways: {visible(name)} is {told}")
    return notes


def metric_band(line: Line, name: str, smooth: int) -> tuple[Band | None, str]:
    """The line's seeds over the steps that all of them have; and what is left out of them.

    None where no step of any seed has the metric.
    """
    having = [run for run in line.runs if np.isfinite(run.metrics.get(name, np.nan)).any()]
    if not having:
        return None, f"{line.name} does not log it"
    steps = having[0].steps
    for run in having[1:]:
        steps = np.intersect1d(steps, run.steps)
    values = np.array([run.metrics[name][np.isin(run.steps, steps)] for run in having])
    last = max(run.steps[-1] for run in having)
    note = ""
    if len(having) < len(line.runs):
        note = f"{line.name}: {len(having)} of {len(line.runs)} seeds log it"
    elif any(len(run.steps) != len(steps) for run in having):
        note = f"{line.name}: only the {len(steps)} steps that all seeds have, of up to {last}"
    return (seed_band(steps, values, smooth), note) if len(steps) else (None, note)
