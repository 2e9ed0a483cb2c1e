"""Groups runs whose configs differ only in the seed; names a group by what sets it apart."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.information.inspection import visible
from iapo_jax.report.results import Run
from iapo_jax.report.series import Band, seed_band

_DIFFER = ("seed", "output_dir")  # the fields in which runs of one group may differ
_NAME = 48  # characters of a name that lists fields


class RunGroup(NamedTuple):
    """Runs whose configs differ only in the seed."""

    name: str
    style: int  # index of its color, dashes and marker, everywhere in a report
    runs: tuple[Run, ...]


def group_seeds(runs: Sequence[Run]) -> tuple[RunGroup, ...]:
    """Groups runs whose configs are equal except for seed and output_dir, and names the groups."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        config = {name: value for name, value in run.config.items() if name not in _DIFFER}
        groups.setdefault(json.dumps(config, sort_keys=True, default=str), []).append(run)
    members = list(groups.values())
    return tuple(
        RunGroup(name=name, style=style, runs=tuple(group))
        for style, (name, group) in enumerate(zip(_names(members), members, strict=True))
    )


def _names(groups: list[list[Run]]) -> list[str]:
    """algorithm.name; groups that share it add the fields that differ, or their directory."""
    configs = [_flat(group[0].config) for group in groups]
    methods = [visible(str(config.get("algorithm.name", "sft"))) for config in configs]
    names = []
    for method, config, group in zip(methods, configs, groups, strict=True):
        alike = [c for m, c in zip(methods, configs, strict=True) if m == method]
        name = method
        if len(alike) > 1:
            text = _differing_fields(config, alike) or str(group[0].directory)
            name = f"{method} ({visible(text)})"
        names.append(name)
    # The text of a field may be made to look like another group's name.
    return [
        name if names.count(name) == 1 else f"{name} ({visible(str(group[0].directory))})"
        for name, group in zip(names, groups, strict=True)
    ]


def _differing_fields(config: dict[str, Any], alike: Sequence[dict[str, Any]]) -> str:
    """`beta=0.1, keep=2`: the fields in which these configs differ; empty if ambiguous or long."""
    fields = sorted({field for one in alike for field in one})
    differ = [f for f in fields if len({repr(one.get(f)) for one in alike}) > 1]
    short = [f.rpartition(".")[2] for f in differ]
    text = ", ".join(f"{name}={config.get(f)}" for name, f in zip(short, differ, strict=True))
    return text if len(set(short)) == len(short) and len(text) <= _NAME else ""


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in config.items():
        if not prefix and name in _DIFFER:
            continue
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def repeated_seeds(groups: Iterable[RunGroup]) -> list[str]:
    """A sentence for each seed that several runs of a group share."""
    notes = []
    for group in groups:
        seeds = [run.config["seed"] for run in group.runs]
        for seed in sorted({s for s in seeds if seeds.count(s) > 1}):
            notes.append(
                f"{group.name}: {seeds.count(seed)} runs have the seed {seed}; they are not "
                "independent, and the band is too narrow"
            )
    return notes


def metric_band(group: RunGroup, name: str, smooth: int) -> tuple[Band | None, str]:
    """The band over the steps that all seeds of the group have, and a note on what it leaves out.

    The band is None if no seed has the metric, or if the seeds share no step.
    """
    having = [run for run in group.runs if np.isfinite(run.metrics.get(name, np.nan)).any()]
    if not having:
        return None, ""
    steps = having[0].steps
    for run in having[1:]:
        steps = np.intersect1d(steps, run.steps)
    values = np.array([run.metrics[name][np.isin(run.steps, steps)] for run in having])
    last = max(run.steps[-1] for run in having)
    note = ""
    if len(having) < len(group.runs):
        note = f"{group.name}: {len(having)} of {len(group.runs)} seeds log it"
    elif any(len(run.steps) != len(steps) for run in having):
        note = f"{group.name}: only the {len(steps)} steps that all seeds have, of up to {last}"
    return (seed_band(steps, values, smooth), note) if len(steps) else (None, note)
