"""Sets of problems: rows to questions and answers, problems to prompts."""

import math
import sys
from collections.abc import Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.answers.equivalence import KINDS
from iapo_jax.config.sections import DataSection, PromptSection
from iapo_jax.config.train import EvalSection, TrainConfig
from iapo_jax.data import arithmetic
from iapo_jax.data.catalogue import DATA_SETS, DataSpec, check_split, parse_spec
from iapo_jax.data.cleaning import check_repeats, clean_rows, name_rows
from iapo_jax.data.files import open_rows
from iapo_jax.data.prompts import encode_prompt, read_question
from iapo_jax.data.questions import question_text, seen_in
from iapo_jax.errors import UserError, check_unicode


class Row(NamedTuple):
    """One problem; `columns` keeps the rest of the row for reward functions."""

    question: str | list[dict]  # text, or chat messages
    answer: str
    columns: dict[str, Any]  # "kind": integer, latex or choice, where it is known


class LoadedSet(NamedTuple):
    """The problems that a spec names, ready to be asked."""

    rows: list[Row]
    name: str  # short, such as gsm8k, or the last part of a path
    split: str
    kind: str  # of the answers; empty = told from each gold
    prompt: PromptSection  # the set's own; `resolve_prompt` joins it with the user's
    notes: list[str]  # what was done to the rows, to be said
    text: str  # the spec as it was written
    source: str = ""  # file, directory or name, for sentences
    numbers: Sequence[int] = ()  # of the rows in it, from 1


def load_section(section: DataSection | EvalSection, field: str = "data.dataset") -> LoadedSet:
    """The problems of a config section; a split or a count inside `dataset` goes before the fields.

    Raises:
      UserError: as `load_set`.
    """
    spec = _section_spec(section, field)
    return load_set(spec, field, split=section.split, subset=section.subset, strict=section.strict)


def load_training(config: TrainConfig) -> LoadedSet:
    """The problems of `config.data`, without those of `eval.dataset` where `eval.shared` says so.

    Raises:
      UserError: as `load_set`, or if nothing is left.
    """
    loaded = load_section(config.data)
    if not config.eval.dataset or config.eval.shared != "leave_out":
        return loaded
    asked = [row.question for row in load_section(config.eval, "eval.dataset").rows]
    out = seen_in(asked, [row.question for row in loaded.rows])
    if not out:
        return loaded
    if len(out) == len(loaded.rows):
        raise UserError(
            f"eval.dataset {config.eval.dataset!r} has every question of data.dataset "
            f"{config.data.dataset!r}, and eval.shared=leave_out leaves none to train on"
        )
    which = f"{loaded.source}, {name_rows([loaded.numbers[i] for i in out])}"
    note = f"{which}: eval.dataset has the question, too; left out of training"
    gone = set(out)
    kept = [i for i in range(len(loaded.rows)) if i not in gone]
    return loaded._replace(
        rows=[loaded.rows[i] for i in kept],
        numbers=[loaded.numbers[i] for i in kept],
        notes=[*loaded.notes, note],
    )


def _section_spec(section: DataSection | EvalSection, field: str) -> DataSpec:
    if not section.dataset:
        raise UserError(
            f"{field} is empty: expected a short name, a file, a directory or a hub name"
        )
    spec = parse_spec(section.dataset, field)
    if spec.last and section.max_rows:
        raise UserError(
            f"{field}: {spec.text!r} names the last rows, and max_rows is {section.max_rows}, the "
            "first ones: expected one of them"
        )
    return spec._replace(first=spec.first or section.max_rows)


def load_set(
    spec: DataSpec,
    field: str = "--dataset",
    *,
    split: str | None = None,
    subset: str | None = None,
    strict: bool | None = False,
) -> LoadedSet:
    """The problems that a spec names, cleaned by the recipe of its name.

    Without a recipe nothing is changed: repeated questions are said, and are an error where their
    answers differ; but on the hub, where nobody can mend them, two answers are said, too.

    Args:
      split: taken where the spec has none; without either, the set's own default, or "test".
      strict: repeated questions are an error; None: they are not looked for.

    Raises:
      UserError: naming the field, the file and the row.
    """
    if not spec.name:
        split = spec.split or split or "test"
        rows = parse_rows(_read(spec, split, subset, field), spec.source)
        notes = []
        if strict is not None:
            lenient = not Path(spec.source).expanduser().exists()
            notes = check_repeats(rows, spec.source, strict=strict, lenient=lenient)
        name, numbers = Path(spec.source).stem, range(1, len(rows) + 1)
        rows, numbers = rows[-spec.last :], numbers[-spec.last :]
        return LoadedSet(
            rows, name, split, "", PromptSection(), notes, spec.text, spec.source, numbers
        )
    one = DATA_SETS[spec.name]
    split = _choose_split(spec, split, field)
    if subset not in (None, one.subset):
        raise UserError(f"{field}: {spec.name} has no subset {subset!r}; expected {one.subset}")
    if spec.source or one.hub:
        raw = open_rows(spec.source or one.hub, one.subset, one.splits[split], field)
    else:
        raw = arithmetic.make_splits()[split]
    source = spec.source or spec.name
    cleaned, notes = clean_rows(raw, one, source)
    if not cleaned:
        raise UserError(f"{field}: {spec.text} has no rows")
    cleaned = cleaned[: spec.first or None][-spec.last :]
    rows, numbers = [Row(*parts[:3]) for parts in cleaned], [parts[3] for parts in cleaned]
    if strict and not one.repeats:  # whose rows are all there
        check_repeats(rows, source, strict=True)
    return LoadedSet(
        rows, spec.name, split, one.kind, one.prompt, notes, spec.text, source, numbers
    )


def _choose_split(spec: DataSpec, split: str | None, field: str) -> str:
    one = DATA_SETS[spec.name]
    stem = Path(spec.source).stem if spec.source else ""
    if stem in one.splits:  # a file that says which split it is
        if spec.split not in (None, stem):
            raise UserError(f"{field}: {spec.source} is the split {stem}, not {spec.split}")
        return stem
    split = spec.split or split or one.default
    check_split(spec.name, split, field)
    return split


def own_prompt(section: DataSection | EvalSection, field: str = "data.dataset") -> PromptSection:
    """The prompt that a config section's data set brings, if any, without reading a row of it."""
    if not section.dataset:
        return PromptSection()
    name = _section_spec(section, field).name
    return DATA_SETS[name].prompt if name else PromptSection()


def load_rows(section: DataSection | EvalSection, field: str = "data.dataset") -> list[dict]:
    """The raw rows of a file, a directory or a hub name, such as worked completions.

    Raises:
      UserError: naming the field, the file and the row.
    """
    spec = _section_spec(section, field)
    if spec.name:
        raise UserError(
            f"{field}: {spec.name} is a set of problems and answers without completions; expected "
            "a file, a directory or a hub name"
        )
    return _read(spec, spec.split or section.split, section.subset, field)[-spec.last :]


def _read(spec: DataSpec, split: str, subset: str | None, field: str) -> list[dict]:
    rows = list(
        islice(open_rows(spec.source, subset, split, field), min(spec.first, sys.maxsize) or None)
    )
    if not rows:
        raise UserError(f"{field}: {spec.source} has no rows")
    return rows


def parse_rows(rows: Sequence[dict], source: str) -> list[Row]:
    """Rows with `prompt` or `question` and `answer`; GSM8K's answer is what follows `####`.

    Raises:
      UserError: naming the source and the row (counted from 1).
    """
    return [_parse_row(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]


def _parse_row(row: dict, where: str) -> Row:
    question = read_question(row, where)
    answer = row.get("answer")
    if answer is None:
        raise UserError(f"{where}: expected `answer`, found {', '.join(row)}")
    number = isinstance(answer, int | float | Decimal) and math.isfinite(answer)
    if not number and not isinstance(answer, str):
        raise UserError(f"{where}: the answer is {answer!r:.60}; expected a text or a number")
    text = final_answer(str(answer))
    if not text:
        raise UserError(
            f"{where}: the answer is empty: {answer!r:.60}; expected a text or a number"
        )
    kind = row.get("kind")
    if kind not in (None, "", *KINDS):
        raise UserError(
            f"{where}: the column kind is {kind!r:.60}; expected {', '.join(KINDS)}, the kind of "
            "the answer, or no such column"
        )
    check_unicode(text, f"{where}: the answer")
    columns = {k: v for k, v in row.items() if k not in ("prompt", "question", "answer")}
    return Row(question, text, columns)


def final_answer(text: str) -> str:
    """GSM8K's worked answers end in `#### 1,234`; others are answers already."""
    _, marker, answer = text.rpartition("####")
    return answer.strip().replace(",", "") if marker else text.strip()


class Problems(NamedTuple):
    """Rendered problems, by row."""

    texts: list[str]
    tokens: list[list[int]]
    answers: list[str]
    columns: list[dict[str, Any]]
    left_out: int  # rows whose prompt was too long
    questions: Sequence[str] = ()  # as in the rows, without system text and instruction
    rows: Sequence[int] = ()  # of the data set, from 0: which of its rows these are


def make_problems(
    rows: Sequence[Row],
    tokenizer: Any,
    section: PromptSection,
    max_prompt_length: int,
    *,
    field: str = "data.max_prompt_length",
    loaded: LoadedSet | None = None,
) -> Problems:
    """Renders and encodes every prompt; leaves out (and counts) those that are too long.

    Args:
      loaded: where the rows are from, for sentences.

    Raises:
      UserError: naming the file and the row; if none is left.
    """
    source = f"{loaded.source}, " if loaded else ""
    numbers = loaded.numbers if loaded else range(1, len(rows) + 1)
    texts, tokens = [], []
    for number, row in zip(numbers, rows, strict=True):
        text, ids = encode_prompt(
            tokenizer, row.question, section, f"{source}row {number}: the question"
        )
        texts.append(text)
        tokens.append(ids)
    kept = [i for i, ids in enumerate(tokens) if 0 < len(ids) <= max_prompt_length]
    if not kept:
        raise UserError(
            f"{field} is {max_prompt_length}, but the shortest of {len(rows)} "
            f"prompts has {min(map(len, tokens), default=0)} tokens"
        )
    pick = lambda values: [values[i] for i in kept]  # noqa: E731
    answers, columns = [row.answer for row in rows], [row.columns for row in rows]
    questions = [question_text(row.question) for row in rows]
    left_out = len(rows) - len(kept)
    return Problems(
        pick(texts), pick(tokens), pick(answers), pick(columns), left_out, pick(questions), kept
    )


def told_left_out(
    problems: Problems,
    loaded: LoadedSet,
    max_prompt_length: int,
    *,
    strict: bool,
    field: str = "data.max_prompt_length",
) -> list[str]:
    """A sentence about the rows whose prompt was too long; none if there were none.

    Raises:
      UserError: the sentence, if `strict`.
    """
    kept = set(problems.rows)
    long = [number for i, number in enumerate(loaded.numbers) if i not in kept]
    if not long:
        return []
    which = f"{loaded.source}, {name_rows(long)}"
    sentence = f"{which}: the prompt has more tokens than {field} ({max_prompt_length})"
    if strict:
        raise UserError(f"{sentence}; expected none (strict)")
    return [f"{sentence}; left out"]


def pick_problems(problems: Problems, indices: Sequence[int]) -> Problems:
    """Some of the problems, each with its row of the data set."""
    pick = lambda values: [values[i] for i in indices]  # noqa: E731
    return Problems(
        pick(problems.texts),
        pick(problems.tokens),
        pick(problems.answers),
        pick(problems.columns),
        problems.left_out,
        pick(problems.questions),
        pick(problems.rows),
    )


def pad_rows(rows: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, right-padded with 0 to [len(rows), size] int32, and their lengths."""
    tokens = np.zeros((len(rows), size), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return tokens, np.asarray([len(row) for row in rows], np.int32)


def bucket(length: int, multiple: int, limit: int) -> int:
    """The length rounded up to a multiple, at most `limit`; `limit` where multiple is 0."""
    return min(-(-length // multiple) * multiple, limit) if multiple else limit
