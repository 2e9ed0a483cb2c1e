"""Demonstrations for supervised fine-tuning: a question, and a completion in weighted pieces."""

import json
import math
from typing import Any, NamedTuple

import numpy as np

from iapo_jax.config.sft import SftConfig
from iapo_jax.data import loading, problems
from iapo_jax.data import prompts as chat_prompts
from iapo_jax.data.catalogue import missing_column
from iapo_jax.data.cleaning import name_rows
from iapo_jax.data.order import batch_order
from iapo_jax.data.questions import question_text
from iapo_jax.errors import UserError, check_unicode
from iapo_jax.pretrained.control_tokens import hide
from iapo_jax.pretrained.tokenization import Tokenizer, encode
from iapo_jax.types import Array, Prompts


class SftBatch(NamedTuple):
    """The rows of one update."""

    prompts: Prompts
    tokens: Array  # [P, 1, T] int32
    weight: Array  # [P, 1, T] float32 >= 0; 0 on padding


def read_pieces(completion: Any, where: str) -> list[tuple[str, float]]:
    """The weighted pieces of a row's completion.

    Raises:
      UserError: naming the row, if a piece is not a [text, weight] pair, or all texts are empty.
    """
    pieces = [[completion, 1.0]] if isinstance(completion, str) else completion
    for piece in pieces if isinstance(pieces, list) else [pieces]:
        if not (isinstance(piece, list | tuple) and len(piece) == 2 and isinstance(piece[0], str)):
            raise UserError(
                f"{where}: `completion` contains {piece!r:.60}; expected a string or a list of "
                "[text, weight] pairs"
            )
        check_unicode(piece[0], f"{where}: `completion`")
        weight = piece[1]
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"{where}: `completion` has the weight {weight!r:.60}; expected a finite number "
                "that is at least 0"
            )
    if not any(text.strip() for text, _ in pieces):
        raise UserError(
            f"{where}: `completion` is {completion!r:.60}; expected text that is not blank"
        )
    return [(text, float(weight)) for text, weight in pieces]


def encode_completion(
    tokenizer: Tokenizer, completion: str | list, where: str
) -> tuple[list[int], list[float]]:
    """The token ids and weights of a completion, with a final end-of-sequence token of weight 1."""
    ids, weights = [], []
    for text, weight in read_pieces(completion, where):
        part = encode(tokenizer, text)
        ids += part
        weights += [weight] * len(part)
    return [*ids, tokenizer.eos_token_id], [*weights, 1.0]


class Demonstrations:
    """The rows of a fine-tuning run. All are checked at the start, and encoded when needed.

    Raises:
      UserError: naming the first invalid row, or if no row is within the length limits.
    """

    def __init__(self, config: SftConfig, tokenizer: Tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.rows = loading.load_rows(config.data)
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no eos_token; expected one, since it ends every completion"
            )
        questions = [self._read(index) for index in range(len(self.rows))]
        self.notes = self._repeats(questions)
        self.limits = config.data.max_prompt_length, config.batch.max_length
        self._too_long: set[int] = set()
        lengths = []
        for index in range(len(self.rows)):  # until a row fits
            prompt, ids, _ = self.tokens(index)
            lengths.append((len(prompt), len(ids)))
            if self._fits(prompt, ids):
                break
        else:
            shortest = tuple(map(min, zip(*lengths, strict=True)))
            raise UserError(
                f"{config.data.dataset}: none of the {len(lengths):,} rows fits "
                f"data.max_prompt_length ({self.limits[0]}) and batch.max_length "
                f"({self.limits[1]}); the shortest prompt has {shortest[0]} tokens, the shortest "
                f"completion {shortest[1]}"
            )
        for index, question in enumerate(questions):
            # A template or the vocabulary may accept most rows and refuse some.
            if not isinstance(question, str) or hide(tokenizer, question) != question:
                self.tokens(index)
        self.order = batch_order(len(self.rows), config.batch.rows_per_step, config.seed)
        if config.data.strict:
            for index in range(len(self.rows)):
                self._encode(index)
            if self._too_long:
                raise UserError(
                    f"{self.describe_left_out()}; data.strict=true does not allow rows that are "
                    "too long"
                )

    @property
    def left_out(self) -> int:
        """The number of rows seen so far that were too long."""
        return len(self._too_long)

    def describe_left_out(self) -> str:
        """Names the rows that were too long, and the limits."""
        rows = name_rows([index + 1 for index in sorted(self._too_long)])
        return (
            f"{self.config.data.dataset}, {rows}: the prompt is longer than data.max_prompt_length "
            f"({self.limits[0]}) or the completion is longer than batch.max_length "
            f"({self.limits[1]})"
        )

    def _repeats(self, questions: list[str | list[dict]]) -> list[str]:
        """A note about repeated rows; a question may have several completions."""
        first: dict[tuple[str, str], int] = {}
        again = []
        for number, (question, row) in enumerate(zip(questions, self.rows, strict=True), 1):
            key = question_text(question), json.dumps(row["completion"])
            if first.setdefault(key, number) != number:
                again.append((first[key], number))
        if not again:
            return []
        repeats = (
            f"{self.config.data.dataset}: {len(again):,} of {len(self.rows):,} rows repeat the "
            f"question and completion of an earlier row, for example {name_rows(again[0])}"
        )
        if self.config.data.strict:
            raise UserError(f"{repeats}; data.strict=true does not allow repeated rows")
        return [repeats]

    def batch(self, step: int) -> SftBatch:
        """The rows of a step. Rows that are too long become empty rows of weight 0."""
        prompts, tokens, weights = zip(*map(self._encode, self.order(step)), strict=True)
        longest = max(map(len, tokens))
        size = problems.bucket(longest, 32, self.config.batch.max_length)
        width = problems.bucket(max(map(len, prompts)), 32, self.config.data.max_prompt_length)
        padded = Prompts(*problems.pad_rows(prompts, width))
        weight = np.zeros((len(tokens), size), np.float32)
        for index, row in enumerate(weights):
            weight[index, : len(row)] = row
        return SftBatch(
            prompts=padded,
            tokens=problems.pad_rows(tokens, size)[0][:, None],
            weight=weight[:, None],
        )

    def _where(self, index: int) -> str:
        return f"{self.config.data.dataset}, row {index + 1}"

    def _read(self, index: int) -> str | list[dict]:
        """The question of a row, once its fields are checked."""
        row, where = self.rows[index], self._where(index)
        if row.get("completion") is None:
            raise UserError(f"{where}: {missing_column(row, 'completion')}")
        read_pieces(row["completion"], where)
        return chat_prompts.read_question(row, where)

    def tokens(self, index: int) -> tuple[list[int], list[int], list[float]]:
        """The token ids of the prompt, those of the completion, and the weights of the latter."""
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
