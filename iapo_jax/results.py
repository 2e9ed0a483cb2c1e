"""Run directories and evaluation directories, read into tuples of arrays."""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.config import load_run_config
from iapo_jax.errors import UserError
from iapo_jax.inspection import Inspection
from iapo_jax.records import FORMAT

_PER_TOKEN = {"informativeness": 0, "entropy": 0, "log_prob": 0, "uncertainty": 1}  # more than T
_UNFIT = "an evaluation that is not complete yet, or of an older version"
_TABLES = ("correct", "length", "finished", "votes")
_TEXTS = ("prompt", "completion", "estimator", "postfix")


class Samples(NamedTuple):
    """One member of one model on one data set: P problems, N completions of each."""

    path: Path
    model: str  # the label of the command line; "before" or "after" in a run directory
    member: int
    members: int  # training seeds under this label
    source: str
    step: int | None
    fingerprint: str  # of the parameters; empty where it is not told
    dataset: str
    settings: dict[str, Any]
    rows: list[int]  # P
    prompts: list[str]  # P
    answers: list[str]  # P, gold
    correct: np.ndarray  # [P, N] bool
    length: np.ndarray  # [P, N] tokens, with the stop token
    finished: np.ndarray  # [P, N] bool; False where the limit cut the completion
    votes: np.ndarray  # [P, N] int; equal numbers = the same answer, -1 = none
    completions: list[dict]  # of the first problems, one each; where the file is there
    inspections: list[Inspection]


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
    for row in read_rows(directory / "metrics.jsonl"):
        if not _is_number(row.get("step")):
            raise UserError(f"{directory / 'metrics.jsonl'}: a row has no number as its step")
        rows[row["step"]] = row  # of a step that was written twice, the later one
    steps = sorted(rows)
    names = {name: None for row in rows.values() for name in row if name != "step"}
    metrics = {name: np.array([_number(rows[s].get(name)) for s in steps]) for name in names}
    notes = [] if rows else [f"{directory}: no step is written down (metrics.jsonl)"]
    found: dict[str, Samples | None] = {}
    for name in ("before", "after"):
        path = directory / "eval" / f"{name}.json"
        found[name] = _read_samples(path, examples) if path.is_file() else None
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
        read_rows(directory / "selection.jsonl"),
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
        rows = read_rows(numbered[step])
        for row in rows:
            _check_texts(row, numbered[step])
        first = {row["prompt"]: row for row in reversed(rows)}  # the first of each prompt
        kept.append((step, list(reversed(first.values()))[:examples]))
    return kept


def _read_evaluation(directory: Path, examples: int) -> Evaluation:
    samples, notes, summary = [], [], {}
    for path in sorted(directory.glob("*.json")):
        if path.name == "summary.json" or path.name.endswith(".inspections.json"):
            continue
        one = _read_samples(path, examples)
        if one is not None:
            samples.append(one)
        else:
            notes.append(f"{path}: {_UNFIT}; left out")
    for (model, dataset), count in Counter((s.model, s.dataset) for s in samples).items():
        most = max(s.members for s in samples if (s.model, s.dataset) == (model, dataset))
        if count < most:
            notes.append(f"{directory}: {count} of {most} seeds of {model} on {dataset}")
    path = directory / "summary.json"
    if samples and path.is_file():
        summary = _read_object(path)
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


def _read_samples(path: Path, examples: int) -> Samples | None:
    """One member's file with what lies beside it; None if there is nothing to show of it (yet)."""
    found = _read_object(path)
    if "correct" not in found or "format" not in found:
        return None
    if found["format"] != FORMAT:
        raise UserError(f"{path}: format is {found['format']!r}; expected {FORMAT}")
    if found.get("complete") is False:
        return None
    lists = {name: _list(found, name, path) for name in ("rows", "prompts", "answers")}
    arrays = {name: _array(found, name, path) for name in _TABLES}
    shape = arrays["correct"].shape
    for name, value in (lists | arrays).items():
        has = np.shape(value)[: 1 if name in lists else 2]
        if has != shape[: len(has)]:
            raise UserError(f"{path}: {name} has the shape {has}; expected {shape[: len(has)]}")
    if not all(isinstance(row, int) for row in lists["rows"]):
        raise UserError(f"{path}: rows are not all whole numbers")
    if (arrays["length"] < 1).any():
        raise UserError(f"{path}: a length is {arrays['length'].min()}; expected at least 1")
    for name in ("model", "dataset"):
        if not isinstance(found.get(name), str):
            raise UserError(f"{path}: {name} is {found.get(name)!r}; expected a text")
    settings = found.get("settings")
    shown = set(lists["rows"][:examples])
    completions = [
        row
        for row in read_rows(path.with_suffix(".completions.jsonl"))
        if _check_texts(row, path.with_suffix(".completions.jsonl"))
        and isinstance(row.get("row"), int)
        and row["row"] in shown
        and row.get("sample") == 0
    ]
    return Samples(
        path=path,
        model=found["model"],
        member=int(_number(found.get("member"), 0)),
        members=int(_number(found.get("members"), 1)),
        source=str(found.get("source") or ""),
        step=found.get("step"),
        fingerprint=str(found.get("fingerprint") or ""),
        dataset=found["dataset"],
        settings=settings if isinstance(settings, dict) else {},
        rows=lists["rows"],
        prompts=[str(text) for text in lists["prompts"]],
        answers=[str(text) for text in lists["answers"]],
        correct=arrays["correct"].astype(bool),
        length=arrays["length"],
        finished=arrays["finished"].astype(bool),
        votes=arrays["votes"],
        completions=completions,
        inspections=read_inspections(path.with_suffix(".inspections.json")),
    )


def only_rows(one: Samples, rows: set[int]) -> Samples:
    """The samples of these rows of the data set."""
    kept = [index for index, row in enumerate(one.rows) if row in rows]
    lists = {n: [getattr(one, n)[i] for i in kept] for n in ("rows", "prompts", "answers")}
    return one._replace(**lists, **{name: getattr(one, name)[kept] for name in _TABLES})


def read_inspections(path: Path) -> list[Inspection]:
    """The inspections of a file; none if it is not there.

    Raises:
      UserError: naming the file and what one of them lacks.
    """
    if not path.is_file():
        return []
    found = _read_json(path)
    if not isinstance(found, list):
        raise UserError(f"{path}: expected a list of inspections, found {type(found).__name__}")
    return [_inspection(one, f"{path}, inspection {n}") for n, one in enumerate(found, 1)]


def _inspection(found: Any, place: str) -> Inspection:
    if not isinstance(found, dict):
        raise UserError(f"{place}: expected an object, found {type(found).__name__}")
    one = Inspection(**{k: v for k, v in found.items() if k in Inspection._fields})
    if not all(isinstance(getattr(one, name), str) for name in _TEXTS) or not all(
        isinstance(text, str | None) for text in (one.answer, one.extracted)
    ):
        raise UserError(f"{place}: a prompt, completion or answer is no text")
    count = len(_list(found, "tokens", place))
    for name, more in _PER_TOKEN.items():
        values = _list(found, name, place)
        if len(values) != count + more or not all(map(_is_number, values)):
            raise UserError(f"{place}: {name} is not {count + more} numbers, for {count} tokens")
    if not all(isinstance(text, str) for text in one.tokens):
        raise UserError(f"{place}: tokens are not all texts")
    if not isinstance(one.thinking_length, int) or not 0 <= one.thinking_length <= count:
        raise UserError(f"{place}: thinking_length is {one.thinking_length!r} of {count} tokens")
    return one


def read_rows(path: Path) -> list[dict]:
    """Objects of a JSONL file; none if it is not there. A half-written last line is left out.

    Raises:
      UserError: naming the file and the line that is damaged.
    """
    if not path.is_file():
        return []
    lines = _bytes(path).split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            if number == len(lines):  # without a line end: it is being written
                break
            raise UserError(f"{path}, line {number}: not readable as JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object, found {row!r:.40}")
        rows.append(row)
    return rows


def _check_texts(row: dict, path: Path) -> bool:
    for name in ("prompt", "completion"):
        if not isinstance(row.get(name), str):
            raise UserError(f"{path}: a row's {name} is {row.get(name)!r}; expected a text")
    return True


def _read_object(path: Path) -> dict:
    found = _read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected an object, found {type(found).__name__}")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_bytes(path).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _list(found: dict, name: str, place: Path | str) -> list:
    if not isinstance(found.get(name), list):
        raise UserError(f"{place}: {name} is {found.get(name)!r:.40}; expected a list")
    return found[name]


def _array(found: dict, name: str, path: Path) -> np.ndarray:
    try:
        array = np.array(_list(found, name, path))
    except ValueError:  # rows of unequal length
        array = np.zeros(())
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biu":
        raise UserError(f"{path}: {name} is not a table of problems x samples of whole numbers")
    return array


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any, default: float = math.nan) -> float:
    return value if _is_number(value) else default


def directories_once(paths: Sequence[Path]) -> list[Path]:
    """The directories in their order, each once however it is spelt."""
    return list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
