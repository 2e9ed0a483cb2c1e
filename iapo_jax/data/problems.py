"""Problems: rows rendered as prompts and encoded, and token ids as padded arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.config.sections import PromptSection
from iapo_jax.data.cleaning import name_rows
from iapo_jax.data.loading import LoadedSet, Row
from iapo_jax.data.prompts import encode_prompt
from iapo_jax.data.questions import question_text
from iapo_jax.errors import UserError


class Problems(NamedTuple):
    """Problems with rendered and encoded prompts, each a row of a dataset."""

    texts: list[str]
    tokens: list[list[int]]
    answers: list[str]
    columns: list[dict[str, Any]]
    left_out: int  # rows whose prompt is too long
    questions: Sequence[str] = ()  # as in the rows, without system text and instruction
    rows: Sequence[int] = ()  # their indices in the dataset, from 0


def make_problems(
    rows: Sequence[Row],
    tokenizer: Any,
    section: PromptSection,
    max_prompt_length: int,
    *,
    field: str = "data.max_prompt_length",
    loaded: LoadedSet | None = None,
) -> Problems:
    """Renders and encodes every prompt; leaves out, and counts, those that are too long.

    Args:
      loaded: the dataset that the rows are from, for error messages.

    Raises:
      UserError: for a question that cannot be encoded, naming the file and the row; or if no row is
        left.
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
            f"{field} is {max_prompt_length}, but the shortest of the {len(rows):,} prompts has "
            f"{min(map(len, tokens), default=0)} tokens"
        )
    problems = Problems(
        texts=texts,
        tokens=tokens,
        answers=[row.answer for row in rows],
        columns=[row.columns for row in rows],
        left_out=len(rows) - len(kept),
        questions=[question_text(row.question) for row in rows],
        rows=range(len(rows)),
    )
    return pick_problems(problems, kept)


def note_left_out(
    problems: Problems,
    loaded: LoadedSet,
    max_prompt_length: int,
    *,
    strict: bool,
    field: str = "data.max_prompt_length",
    strict_field: str = "data.strict",
) -> list[str]:
    """One note about the rows whose prompt is too long, or none.

    Args:
      field, strict_field: the names of the limit and of `strict` in the config.

    Raises:
      UserError: in place of the note, if `strict`.
    """
    kept = set(problems.rows)
    long = [number for i, number in enumerate(loaded.numbers) if i not in kept]
    if not long:
        return []
    which = f"{loaded.source}, {name_rows(long)}"
    sentence = f"{which}: the prompt has more tokens than {field} ({max_prompt_length})"
    if strict:
        raise UserError(f"{sentence}; {strict_field}=true does not allow prompts that are too long")
    return [f"{sentence}; left out"]


def pick_problems(problems: Problems, indices: Sequence[int]) -> Problems:
    """The problems at these indices."""

    def pick(values: Sequence[Any]) -> list[Any]:
        return [values[i] for i in indices]

    return Problems(
        texts=pick(problems.texts),
        tokens=pick(problems.tokens),
        answers=pick(problems.answers),
        columns=pick(problems.columns),
        left_out=problems.left_out,
        questions=pick(problems.questions),
        rows=pick(problems.rows),
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
