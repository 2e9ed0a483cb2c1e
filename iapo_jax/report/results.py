"""Run directories and evaluation directories, read and checked."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.config.loading import load_run_config
from iapo_jax.errors import UserError
from iapo_jax.report.samples import Samples, is_number, number, read_samples, read_texts
from iapo_jax.runtime.files import read_json, read_jsonl

_LEFT_OUT = "left out; the evaluation is incomplete or from an older version"


class Run(NamedTuple):
    """One run directory."""

    directory: Path
    config: dict[str, Any]  # resolved, by section
    steps: np.ndarray  # [S], ascending
    metrics: dict[str, np.ndarray]  # [S] each; NaN where a step lacks it
    before: Samples | None
    after: Samples | None
    candidates: list[dict]  # of selection.jsonl
    texts: list[tuple[int, list[dict]]]  # of the first and the last step with stored completions
    notes: list[str]  # what is missing, a sentence each


class Evaluation(NamedTuple):
    """One evaluation directory."""

    directory: Path
    samples: list[Samples]
    metrics: list[dict]  # `figures` of summary.json
    differences: list[dict]
    notes: list[str]


def read_directory(directory: Path, *, examples: int) -> Run | Evaluation:
    """Reads a run or evaluation directory, with the texts of the first `examples` problems.

    Raises:
      UserError: naming the directory if it is neither, or the file that is damaged.
    """
    if not directory.is_dir():
        raise UserError(
            f"{str(directory)!r} is not a directory; expected a run or evaluation directory"
        )
    if (directory / "config.yaml").is_file():
        return _read_run(directory, examples)
    evaluation = _read_evaluation(directory, examples)
    if not evaluation.samples and not evaluation.notes:
        inside = [p.name for p in sorted(directory.iterdir()) if (p / "config.yaml").is_file()]
        hint = f"; expected its runs, such as {directory / inside[0]}" if inside else ""
        raise UserError(
            f"{str(directory)!r} is neither a run directory (config.yaml) nor an evaluation "
            f"directory (LABEL.DATASET.json){hint}"
        )
    return evaluation


def _read_run(directory: Path, examples: int) -> Run:
    steps, metrics = _read_metrics(directory / "metrics.jsonl")
    notes = [] if len(steps) else [f"{directory}: metrics.jsonl has no steps"]
    samples: dict[str, Samples | None] = {}
    for name in ("before", "after"):
        path = directory / "eval" / f"{name}.json"
        samples[name] = read_samples(path, examples) if path.is_file() else None
        if not path.is_file():
            notes.append(f"{directory}: no evaluation {name} training (eval/{name}.json)")
        elif samples[name] is None:
            notes.append(f"{path}: {_LEFT_OUT}")
    return Run(
        directory=directory,
        config=dataclasses.asdict(load_run_config(directory / "config.yaml")),
        steps=steps,
        metrics=metrics,
        before=samples["before"],
        after=samples["after"],
        candidates=read_jsonl(directory / "selection.jsonl"),
        texts=_training_texts(directory / "completions", examples),
        notes=notes,
    )


def _read_metrics(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows = {}
    for row in read_jsonl(path, _with_step):
        rows[row["step"]] = row  # a step that was written twice keeps the later row
    steps = sorted(rows)
    names = dict.fromkeys(name for row in rows.values() for name in row if name != "step")
    values = {name: np.array([number(rows[step].get(name)) for step in steps]) for name in names}
    return np.array(steps), values


def _with_step(row: dict[str, Any]) -> dict[str, Any]:
    if not is_number(row.get("step")):
        raise ValueError(f"step is {row.get('step')!r:.40}; expected a number")
    return row


def _training_texts(directory: Path, examples: int) -> list[tuple[int, list[dict]]]:
    files = {}
    for path in directory.glob("step_*.jsonl") if directory.is_dir() else ():
        step = path.stem.removeprefix("step_")
        if step.isdecimal():
            files[int(step)] = path
    texts = []
    for step in sorted({min(files), max(files)}) if files else []:
        rows = read_texts(files[step])
        first = {row["prompt"]: row for row in reversed(rows)}  # the first of each prompt
        texts.append((step, list(reversed(first.values()))[:examples]))
    return texts


def _read_evaluation(directory: Path, examples: int) -> Evaluation:
    samples, notes, summary = [], [], {}
    for path in sorted(directory.glob("*.json")):
        if path.name == "summary.json" or path.name.endswith(".inspections.json"):
            continue
        found = read_samples(path, examples)
        if found is not None:
            samples.append(found)
        elif "correct" in read_json(path):
            notes.append(f"{path}: {_LEFT_OUT}")
    notes += _missing_seeds(directory, samples)
    path = directory / "summary.json"
    if samples and path.is_file():
        summary = read_json(path)
        if "figures" not in summary:
            notes.append(f"{path} has no metrics; they are computed from the completions")
    elif samples:
        notes.append(f"{directory}: no summary.json; metrics are computed from the completions")
    return Evaluation(
        directory=directory,
        samples=samples,
        metrics=_checked(summary, "figures", path),
        differences=_checked(summary, "differences", path),
        notes=notes,
    )


def _missing_seeds(directory: Path, samples: Sequence[Samples]) -> list[str]:
    records = [one.record for one in samples]
    members: dict[tuple[str, str], int] = {}
    for record in records:
        key = (record.model, record.dataset)
        members[key] = max(members.get(key, 1), record.members)
    counts = Counter((record.model, record.dataset) for record in records)
    return [
        f"{directory}: results of only {count} of {members[model, dataset]} seeds of {model} on "
        f"{dataset}"
        for (model, dataset), count in counts.items()
        if count < members[model, dataset]
    ]


def _checked(summary: dict[str, Any], part: str, path: Path) -> list[dict]:
    rows = summary.get(part, [])
    if not isinstance(rows, list):
        raise UserError(f"{path}: `{part}` is {rows!r:.40}; expected a list")
    for row in rows:
        names = ("model", "dataset", "name")
        if not isinstance(row, dict) or not all(isinstance(row.get(n), str) for n in names):
            raise UserError(
                f"{path}: an entry of `{part}` is {row!r:.80}; expected an object with model, "
                "dataset and name"
            )
        if not isinstance(row.get("baseline"), str | None):
            raise UserError(f"{path}: baseline is {row['baseline']!r:.40}; expected a string")
    return rows


def distinct_directories(paths: Sequence[Path]) -> list[Path]:
    """The directories in order, each once, however it is spelled."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
