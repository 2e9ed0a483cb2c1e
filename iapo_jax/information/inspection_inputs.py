"""Checks the inputs of an inspection: prompts, completions, answers and config fields."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from iapo_jax.config import checks
from iapo_jax.config.sections import InformationSection
from iapo_jax.config.train import SamplingSection, TrainConfig
from iapo_jax.errors import UserError, check_unicode
from iapo_jax.information import probes
from iapo_jax.pretrained import tokenization
from iapo_jax.pretrained.control_tokens import Prompt
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.runtime.console import say


def encode_prompt(
    loaded: LoadedModel, prompt: str | Prompt, completion: int, probe: int
) -> list[int]:
    """The prompt's ids, without special tokens around them.

    Args:
      prompt: a string, whose control tokens are encoded as such, or a `Prompt` with its ids.
      completion: tokens of the longest completion that follows.
      probe: tokens of postfix and answer, which follow the completion.

    Raises:
      UserError: if the prompt is empty, or if all of these exceed the model's context.
    """
    ids = prompt_ids(loaded, prompt)
    if not isinstance(prompt, Prompt):
        note_other_text(loaded.pretrained.tokenizer, ids, prompt, "the prompt")
    if not ids:
        raise UserError("the prompt is empty; expected at least one token")
    limit = context_length(loaded)
    if len(ids) + completion + probe > limit:
        raise UserError(
            f"the prompt ({len(ids)} tokens), the completion (at least {completion}) and the probe "
            f"(up to {probe}; see information.max_answer_length) need "
            f"{len(ids) + completion + probe} tokens; expected at most {limit}, the context length "
            "of the model (max_position_embeddings)"
        )
    return ids


def prompt_ids(loaded: LoadedModel, prompt: str | Prompt) -> list[int]:
    """The ids of a prompt; a string is encoded."""
    if isinstance(prompt, Prompt):
        return prompt.ids
    check_text(prompt, "the prompt")
    return tokenization.encode(loaded.pretrained.tokenizer, prompt)


def prompt_text(prompt: str | Prompt) -> str:
    """The text of a prompt."""
    return prompt.text if isinstance(prompt, Prompt) else prompt


def completion_ids(loaded: LoadedModel, completion: str | Sequence[int], field: str) -> np.ndarray:
    """The ids of a text, or the given ones.

    Raises:
      UserError: naming the field, if it is neither a string nor ids of this model.
    """
    if isinstance(completion, str):
        check_text(completion, field)
        tokenizer = loaded.pretrained.tokenizer
        ids = tokenization.encode(tokenizer, completion)
        note_other_text(tokenizer, ids, completion, field)
        return np.asarray(ids, np.int32)
    ids, size = np.asarray(completion), loaded.pretrained.config.vocab_size
    if ids.size == 0:
        return ids.astype(np.int32)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise UserError(f"{field} is {completion!r:.80}; expected a string or a list of token ids")
    if ids.min() < 0 or ids.max() >= size:
        outside = ids[(ids < 0) | (ids >= size)][0]
        raise UserError(f"{field} contains the id {outside}; expected ids from 0 to {size - 1}")
    return ids.astype(np.int32)


def check_text(text: str, field: str) -> None:
    """Raises unless it is a string of valid Unicode; a command line may hold other bytes.

    Raises:
      UserError: naming the field.
    """
    if not isinstance(text, str):
        raise UserError(f"{field} is {text!r}; expected a string")
    check_unicode(text, field)


def check_answer(section: InformationSection, answer: str | None, field: str) -> None:
    """Raises if the estimator needs an answer that is not given.

    Raises:
      UserError: naming the field.
    """
    if answer is not None and not answer.strip():
        raise UserError(f"{field} is empty; expected the reference answer")
    if section.estimator == "answer_log_prob" and section.reference == "gold" and answer is None:
        raise UserError(
            f"answer_log_prob needs a reference answer; expected {field}, or "
            "information.reference=own to use the answer of each completion"
        )


def note_other_text(tokenizer: Any, ids: list[int], text: str, field: str) -> None:
    """Notes if the ids decode to a different text, for example if a character has no token."""
    written = tokenization.decode(tokenizer, ids)
    if written != text:
        say(
            f"note: {field} does not survive tokenization: {shorten(text)} becomes "
            f"{shorten(written)}; the model reads the latter"
        )


def shorten(text: str) -> str:
    """The text in quotes, truncated to 80 characters."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def context_length(loaded: LoadedModel) -> int:
    """The model's context length in tokens; unbounded if its config.json does not state it."""
    return loaded.pretrained.hf_config.get("max_position_embeddings") or sys.maxsize


def information_section(fields: dict[str, Any], sampling: SamplingSection) -> InformationSection:
    """An `InformationSection` with these fields and a resolved estimator.

    Raises:
      UserError: for an unknown field, or a value out of range, also in `sampling`.
    """
    known = [field.name for field in dataclasses.fields(InformationSection)]
    for name, value in fields.items():
        if name not in known:
            raise UserError(
                f"information.{name} is not a field; expected one of {', '.join(known)}"
            )
        if isinstance(value, str) and name in ("boundaries", "end_of_thinking"):
            raise UserError(f"information.{name} is {value!r}; expected a list of strings")
    section = InformationSection(**fields)
    checks.check_ranges(TrainConfig(information=section, sampling=sampling))
    return probes.settle(section)
