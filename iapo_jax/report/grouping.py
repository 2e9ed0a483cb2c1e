"""Seeds of one config are one line of a report; the lines are named by what differs."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.information.inspection import visible
from iapo_jax.report.results import Run
from iapo_jax.report.series import Band, seed_band

_APART = ("seed", "output_dir")  # in these alone seeds of one config differ


_NAME = 48  # characters of a name that says what differs


class Line(NamedTuple):
    """Runs of one config, which differ in the seed."""

    name: str
    look: int  # index of its color, dashes and marker, everywhere in a report
    runs: tuple[Run, ...]


def group_seeds(runs: Sequence[Run]) -> tuple[Line, ...]:
    """Runs whose configs are equal but for seed and output_dir, each group under its own name."""
    groups = _groups(runs)
    named = zip(_names(groups), groups, strict=True)
    return tuple(Line(name, look, tuple(group)) for look, (name, group) in enumerate(named))


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


def repeated_seeds(lines: Iterable[Line]) -> list[str]:
    """A sentence for each seed that several runs of a line have."""
    notes = []
    for line in lines:
        seeds = [run.config["seed"] for run in line.runs]
        for seed in sorted({s for s in seeds if seeds.count(s) > 1}):
            notes.append(
                f"{line.name}: {seeds.count(seed)} runs have the seed {seed}; they are no "
                "independent seeds, and the band is too narrow"
            )
    return notes


def metric_band(line: Line, name: str, smooth: int) -> tuple[Band | None, str]:
    """The line's seeds over the steps that all of them have; and what is left out of them.

    None where no step of any seed has the metric, or no step is in all of them.
    """
    having = [run for run in line.runs if np.isfinite(run.metrics.get(name, np.nan)).any()]
    if not having:
        return None, ""
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
