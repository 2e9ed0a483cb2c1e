"""Run directories and evaluation directories, read into tuples of arrays."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.config.loading import load_run_config
from iapo_jax.errors import UserError
from iapo_jax.report.samples import (
    Samples,
    check_texts,
    is_number,
    number,
    read_samples,
)
from iapo_jax.runtime.files import read_json, read_jsonl

_UNFIT = "an evaluation that is not complete yet, or of an older version"


class Run(NamedTuple):
    """One run directory."""

    directory: Path
    config: dict[str, Any]  # resolved, by section
    steps: np.ndarray  # [S], rising
    metrics: dict[str, np.ndarray]  # [S] each; NaN where a step does not have it
    before: Samples | None
    after: Samples | None
    candidates: list[dict]  # of selection.jsonl
    texts: list[tuple[int, list[dict]]]  # completions of the first and of the last step
    notes: list[str]  # what is missing, a sentence each


class Evaluation(NamedTuple):
    """One evaluation directory."""

    directory: Path
    samples: list[Samples]
    figures: list[dict]  # of summary.json
    differences: list[dict]
    notes: list[str]


def read_directory(directory: Path, *, examples: int) -> Run | Evaluation:
    """What `directory` holds, with the texts of the first `examples` problems.

    Raises:
      UserError: naming the directory if it is of neither kind, or the file that is damaged.
    """
    if not directory.is_dir():
        raise UserError(f"{str(directory)!r} is no directory; expected one of a run or evaluation")
    if (directory / "config.yaml").is_file():
        return _read_run(directory, examples)
    evaluation = _read_evaluation(directory, examples)
    if not evaluation.samples and not evaluation.notes:
        inside = [p.name for p in sorted(directory.iterdir()) if (p / "config.yaml").is_file()]
        hint = f"; it holds runs: give {directory / inside[0]} and so on" if inside else ""
        raise UserError(
            f"{str(directory)!r} is neither a run directory (config.yaml) nor an evaluation "
            f"directory (LABEL.DATASET.json){hint}"
        )
    return evaluation


def _read_run(directory: Path, examples: int) -> Run:
    config = dataclasses.asdict(load_run_config(directory / "config.yaml"))
    rows = {}
    for row in read_jsonl(directory / "metrics.jsonl"):
        if not is_number(row.get("step")):
            raise UserError(f"{directory / 'metrics.jsonl'}: a row has no number as its step")
        rows[row["step"]] = row  # of a step that was written twice, the later one
    steps = sorted(rows)
    names = {name: None for row in rows.values() for name in row if name != "step"}
    metrics = {name: np.array([number(rows[s].get(name)) for s in steps]) for name in names}
    notes = [] if rows else [f"{directory}: no step is written down (metrics.jsonl)"]
    found: dict[str, Samples | None] = {}
    for name in ("before", "after"):
        path = directory / "eval" / f"{name}.json"
        found[name] = read_samples(path, examples) if path.is_file() else None
        if not path.is_file():
            notes.append(f"{directory}: no evaluation {name} training (eval/{name}.json)")
        elif found[name] is None:
            notes.append(f"{path}: {_UNFIT}; left out")
    return Run(
        directory,
        config,
        np.array(steps),
        metrics,
        found["before"],
        found["after"],
        read_jsonl(directory / "selection.jsonl"),
        _training_texts(directory / "completions", examples),
        notes,
    )


def _training_texts(directory: Path, examples: int) -> list[tuple[int, list[dict]]]:
    numbered = {}
    for path in directory.glob("step_*.jsonl") if directory.is_dir() else ():
        number = path.stem.removeprefix("step_")
        if number.isdecimal():
            numbered[int(number)] = path
    ends = sorted({min(numbered), max(numbered)}) if numbered else []
    kept = []
    for step in ends:
        rows = read_jsonl(numbered[step])
        for row in rows:
            check_texts(row, numbered[step])
        first = {row["prompt"]: row for row in reversed(rows)}  # the first of each prompt
        kept.append((step, list(reversed(first.values()))[:examples]))
    return kept


def _read_evaluation(directory: Path, examples: int) -> Evaluation:
    samples, notes, summary = [], [], {}
    for path in sorted(directory.glob("*.json")):
        if path.name == "summary.json" or path.name.endswith(".inspections.json"):
            continue
        one = read_samples(path, examples)
        if one is not None:
            samples.append(one)
        elif "correct" in read_json(path):
            notes.append(f"{path}: {_UNFIT}; left out")
    for (model, dataset), count in Counter((s.model, s.dataset) for s in samples).items():
        most = max(s.members for s in samples if (s.model, s.dataset) == (model, dataset))
        if count < most:
            notes.append(f"{directory}: {count} of {most} seeds of {model} on {dataset}")
    path = directory / "summary.json"
    if samples and path.is_file():
        summary = read_json(path)
        if "figures" not in summary:
            notes.append(f"{path}: holds no figures; they are computed from the completions")
    elif samples:
        notes.append(f"{directory}: no summary.json; figures are computed from the completions")
    parts = [_check_summary(summary.get(name, []), path) for name in ("figures", "differences")]
    return Evaluation(directory, samples, *parts, notes)


def _check_summary(rows: Any, path: Path) -> list[dict]:
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected lists of figures and differences")
    for row in rows:
        names = ("model", "dataset", "name")
        if not isinstance(row, dict) or not all(isinstance(row.get(n), str) for n in names):
            raise UserError(f"{path}: a figure lacks its model, dataset or name: {row!r:.80}")
    return rows


def directories_once(paths: Sequence[Path]) -> list[Path]:
    """The directories in their order, each once however it is spelt."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
