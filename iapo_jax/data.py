"""Rows from files or the hub, prompts through the chat template, order as a function of the step.

The home of datasets and grain.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import grain
import numpy as np

from iapo_jax.config import DataSection, EvalSection, PromptSection
from iapo_jax.errors import UserError
from iapo_jax.pretrained import encode

R1_SYSTEM = (
    "You are a careful assistant. The user asks a question and you solve it. Reason first, then "
    "answer: put the reasoning between <think> and </think> tags and the final answer between "
    "<answer> and </answer> tags, like this: <think>\nyour reasoning\n</think>\n"
    "<answer>your answer</answer>"
)


class Row(NamedTuple):
    """One problem; `columns` keeps the rest of the row for reward functions."""

    question: str | list[dict]  # text, or chat messages
    answer: str
    columns: dict[str, Any]


def load_rows(section: DataSection | EvalSection, field: str = "data.dataset") -> list[dict]:
    """The raw rows that a config section names.

    Raises:
      UserError: naming the field, the file and the row.
    """
    name = section.dataset
    if not name:
        raise UserError(f"{field} is empty: expected a file, a directory or a hub name")
    path = Path(name).expanduser()
    if path.is_file() and path.suffix in (".jsonl", ".json"):
        rows = _read_jsonl(path, section.max_rows)
    else:
        rows = _open_dataset(section, path, field)
        rows = list(rows.select(range(min(section.max_rows or len(rows), len(rows)))))
    if not rows:
        raise UserError(f"{field}: {name} has no rows")
    return rows


def _read_jsonl(path: Path, limit: int) -> list[dict]:
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if limit and len(rows) == limit:
                break
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number}: not UTF-8: {error}") from None
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number}: expected an object, found {row!r:.60}")
            rows.append(row)
    return rows


def _open_dataset(section: DataSection | EvalSection, path: Path, field: str) -> datasets.Dataset:
    try:
        if path.is_file() and path.suffix == ".parquet":
            return datasets.Dataset.from_parquet(str(path))
        if path.is_dir() and any((path / f).is_file() for f in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
            return loaded[section.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        if path.is_file() or path.is_absolute() or path.suffix in (".jsonl", ".json", ".parquet"):
            raise FileNotFoundError("expected an existing .jsonl or .parquet file")
        return datasets.load_dataset(section.dataset, section.subset, split=section.split)
    except Exception as error:  # datasets raises a class of its own for each way to fail
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"{field}: cannot open {section.dataset!r}: {reason}") from None


def parse_rows(rows: Sequence[dict], source: str) -> list[Row]:
    """Rows with `prompt` or `question` and `answer`; GSM8K's answer is what follows `####`.

    Raises:
      UserError: naming the source and the row (counted from 1).
    """
    return [_parse_row(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)]


def _parse_row(row: dict, where: str) -> Row:
    question = read_question(row, where)
    if row.get("answer") is None:
        raise UserError(f"{where}: expected `answer`, found {', '.join(row)}")
    columns = {k: v for k, v in row.items() if k not in ("prompt", "question", "answer")}
    return Row(question, final_answer(str(row["answer"])), columns)


def read_question(row: dict, where: str) -> str | list[dict]:
    """The `prompt`, or else the `question`, of a row: a text or chat messages.

    Raises:
      UserError: naming the row.
    """
    question = row.get("prompt", row.get("question"))
    if question is None:
        raise UserError(f"{where}: expected `prompt` or `question`, found {', '.join(row)}")
    if not isinstance(question, str | list) or not question:
        raise UserError(f"{where}: the question is empty or no text: {question!r:.60}")
    for message in question if isinstance(question, list) else []:
        texts = [message.get(k) for k in ("role", "content")] if isinstance(message, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{where}: a prompt that is a list holds chat messages, each with the texts `role` "
                f"and `content`; found {message!r:.60}"
            )
    return question


def final_answer(text: str) -> str:
    """GSM8K's worked answers end in `#### 1,234`; others are answers already."""
    _, marker, answer = text.rpartition("####")
    return answer.strip().replace(",", "") if marker else text.strip()


def render_prompt(tokenizer: Any, question: str | list[dict], section: PromptSection) -> str:
    """The prompt's text: system, worked turn, question, through the tokenizer's chat template."""
    messages = []
    if section.system:
        system = R1_SYSTEM if section.system == "r1" else section.system
        messages.append({"role": "system", "content": system})
    if section.example_question:
        messages.append({"role": "user", "content": _ask(section.example_question, section)})
        messages.append({"role": "assistant", "content": section.example_answer})
    if isinstance(question, str):
        messages.append({"role": "user", "content": _ask(question, section)})
    else:
        messages += question
    if not getattr(tokenizer, "chat_template", None):
        return "\n\n".join(message["content"] for message in messages) + "\n\n"
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template refuses by raising, such as for a system turn
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the tokenizer's chat template refuses the turns {roles}: {reason}"
        ) from error


def _ask(question: str, section: PromptSection) -> str:
    return f"{question} {section.instruction}" if section.instruction else question


class Problems(NamedTuple):
    """Rendered problems, by row."""

    texts: list[str]
    tokens: list[list[int]]
    answers: list[str]
    columns: list[dict[str, Any]]
    left_out: int  # rows whose prompt was too long
    rows: list[int] = []  # of the data set, from 0: which of its rows these are


def make_problems(
    rows: Sequence[Row], tokenizer: Any, section: PromptSection, max_prompt_length: int
) -> Problems:
    """Renders and encodes every prompt; leaves out (and counts) those that are too long."""
    texts = [render_prompt(tokenizer, row.question, section) for row in rows]
    tokens = [encode(tokenizer, text) for text in texts]
    kept = [i for i, ids in enumerate(tokens) if 0 < len(ids) <= max_prompt_length]
    if not kept:
        raise UserError(
            f"data.max_prompt_length is {max_prompt_length}, but the shortest of {len(rows)} "
            f"prompts has {min(map(len, tokens), default=0)} tokens"
        )
    pick = lambda values: [values[i] for i in kept]  # noqa: E731
    answers, columns = [row.answer for row in rows], [row.columns for row in rows]
    left_out = len(rows) - len(kept)
    return Problems(pick(texts), pick(tokens), pick(answers), pick(columns), left_out, kept)


def batch_order(rows: int, batch: int, seed: int) -> Callable[[int], np.ndarray]:
    """step -> the rows [batch] of that step: every epoch a new permutation of all rows.

    A pure function of (seed, step): a resumed run asks for its step and gets the same rows.
    """
    order = grain.MapDataset.range(rows).seed(seed).shuffle().repeat().batch(batch)
    return lambda step: np.asarray(order[step])


def pad_rows(rows: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ids, right-padded with 0 to [len(rows), size] int32, and their lengths."""
    tokens = np.zeros((len(rows), size), np.int32)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    return tokens, np.asarray([len(row) for row in rows], np.int32)


def bucket(length: int, multiple: int, limit: int) -> int:
    """The length rounded up to a multiple, at most `limit`; `limit` where multiple is 0."""
    return min(-(-length // multiple) * multiple, limit) if multiple else limit
