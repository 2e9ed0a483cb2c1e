"""Rows of supervised fine-tuning: a question, and a completion in weighted pieces."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.config.sft import SftConfig
from iapo_jax.data import loading, problems
from iapo_jax.data import prompts as chat_prompts
from iapo_jax.data.cleaning import name_rows
from iapo_jax.data.order import batch_order
from iapo_jax.data.questions import question_text
from iapo_jax.errors import UserError, check_unicode
from iapo_jax.pretrained.control_tokens import hide
from iapo_jax.pretrained.tokenization import encode
from iapo_jax.types import Array, Prompts


class SftBatch(NamedTuple):
    """Rows of one update."""

    prompts: Prompts
    tokens: Array  # [P, 1, T] int32
    weight: Array  # [P, 1, T] float32 >= 0; 0 on padding


def read_pieces(completion: Any, where: str) -> list[tuple[str, float]]:
    """The weighted pieces of a row's completion.

    Raises:
      UserError: naming the row, if a piece is no [text, weight] pair, or there is no text.
    """
    pieces = [[completion, 1.0]] if isinstance(completion, str) else completion
    for piece in pieces if isinstance(pieces, list) else [pieces]:
        if not (isinstance(piece, list | tuple) and len(piece) == 2 and isinstance(piece[0], str)):
            raise UserError(
                f"{where}: `completion` is a text or a list of [text, weight], found {piece!r:.60}"
            )
        check_unicode(piece[0], f"{where}: `completion`")
        weight = piece[1]
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"{where}: `completion` is a text or a list of [text, weight] with finite weights "
                f"of at least 0, found the weight {weight!r:.60}"
            )
    if not any(text.strip() for text, _ in pieces):
        raise UserError(f"{where}: `completion` is empty: {completion!r:.60}; expected a text")
    return [(text, float(weight)) for text, weight in pieces]


def encode_completion(
    tokenizer: Any, completion: str | list, where: str
) -> tuple[list[int], list[float]]:
    """Token ids and weights of a row's completion, with the end-of-sequence token after it."""
    ids, weights = [], []
    for text, weight in read_pieces(completion, where):
        part = encode(tokenizer, text)
        ids += part
        weights += [weight] * len(part)
    return [*ids, tokenizer.eos_token_id], [*weights, 1.0]


class Demonstrations:
    """Encodes rows when a step asks for them; what could be wrong with one is found at the start.

    Raises:
      UserError: naming the first row that is wrong; if no row fits into the limits.
    """

    def __init__(self, config: SftConfig, tokenizer: Any):
        self.config, self.tokenizer = config, tokenizer
        self.rows = loading.load_rows(config.data)
        if tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no eos_token, which ends every completion; set one")
        questions = [self._read(index) for index in range(len(self.rows))]
        self.notes = self._repeats(questions)
        self.limits = config.data.max_prompt_length, config.batch.max_length
        self._too_long: set[int] = set()
        lengths = []
        for index in range(len(self.rows)):  # until one fits
            prompt, ids, _ = self.tokens(index)
            lengths.append((len(prompt), len(ids)))
            if self._fits(prompt, ids):
                break
        else:
            shortest = tuple(map(min, zip(*lengths, strict=True)))
            raise UserError(
                f"{config.data.dataset}: none of {len(lengths)} rows fits into "
                f"data.max_prompt_length ({self.limits[0]}) and batch.max_length "
                f"({self.limits[1]}); the shortest prompt has {shortest[0]} tokens, the shortest "
                f"completion {shortest[1]}"
            )
        for index, question in enumerate(questions):
            # What a template, or the vocabulary, may refuse in one row and not in another.
            if not isinstance(question, str) or hide(tokenizer, question) != question:
                self.tokens(index)
        self.order = batch_order(len(self.rows), config.batch.rows_per_step, config.seed)
        if config.data.strict:
            for index in range(len(self.rows)):
                self._encode(index)
            if self._too_long:
                raise UserError(f"{self.describe_left_out()}; expected none (strict)")

    @property
    def left_out(self) -> int:
        """Rows that were too long, of those that a step asked for."""
        return len(self._too_long)

    def describe_left_out(self) -> str:
        """Which these are."""
        rows = name_rows([index + 1 for index in sorted(self._too_long)])
        return (
            f"{self.config.data.dataset}, {rows}: more tokens than data.max_prompt_length "
            f"({self.limits[0]}) or batch.max_length ({self.limits[1]})"
        )

    def _repeats(self, questions: list[str | list[dict]]) -> list[str]:
        """A sentence about rows that are there twice; one question may have many completions."""
        first: dict[tuple[str, str], int] = {}
        again = []
        for number, (question, row) in enumerate(zip(questions, self.rows, strict=True), 1):
            key = question_text(question), json.dumps(row["completion"])
            if first.setdefault(key, number) != number:
                again.append((first[key], number))
        if not again:
            return []
        told = (
            f"{self.config.data.dataset}: {len(again):,} of {len(self.rows):,} rows are there "
            f"before with the same question and completion, as {name_rows(again[0])}"
        )
        if self.config.data.strict:
            raise UserError(f"{told}; expected each row once (strict)")
        return [told]

    def batch(self, step: int) -> SftBatch:
        """The rows of a step; those that are too long stay as empty rows of weight 0."""
        prompts, tokens, weights = zip(*map(self._encode, self.order(step)), strict=True)
        longest = max(map(len, tokens))
        size = problems.bucket(longest, 32, self.config.batch.max_length)
        width = problems.bucket(max(map(len, prompts)), 32, self.config.data.max_prompt_length)
        padded = Prompts(*problems.pad_rows(prompts, width))
        weight = np.zeros((len(tokens), size), np.float32)
        for index, row in enumerate(weights):
            weight[index, : len(row)] = row
        return SftBatch(padded, problems.pad_rows(tokens, size)[0][:, None], weight[:, None])

    def _where(self, index: int) -> str:
        return f"{self.config.data.dataset}, row {index + 1}"

    def _read(self, index: int) -> str | list[dict]:
        """The question of a row whose fields are right."""
        row, where = self.rows[index], self._where(index)
        if row.get("prompt", row.get("question")) is None or "completion" not in row:
            raise UserError(
                f"{where}: expected `prompt` or `question`, and `completion`, "
                f"found {', '.join(row)}"
            )
        read_pieces(row["completion"], where)
        return chat_prompts.read_question(row, where)

    def tokens(self, index: int) -> tuple[list[int], list[int], list[float]]:
        """Ids of the prompt, ids of the completion, and the weights of the latter."""
        where, completion = self._where(index), self.rows[index]["completion"]
        prompt = chat_prompts.encode_prompt(
            self.tokenizer, self._read(index), self.config.prompt, f"{where}: the question"
        )
        ids, weights = encode_completion(self.tokenizer, completion, where)
        return prompt.ids, ids, weights

    def _fits(self, prompt: list[int], ids: list[int]) -> bool:
        return len(prompt) <= self.limits[0] and len(ids) <= self.limits[1]

    def _encode(self, index: int) -> tuple[list[int], list[int], list[float]]:
        prompt, ids, weights = self.tokens(index)
        if not self._fits(prompt, ids):
            self._too_long.add(index)
            return [0], [0], [0.0]
        return prompt, ids, weights
