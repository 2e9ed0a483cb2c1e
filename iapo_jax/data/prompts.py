"""The prompt of a question: system text, example, instruction, through the chat template.

A question is untrusted: no part of it becomes a control token (`pretrained.control_tokens`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from iapo_jax.config.sections import PromptSection
from iapo_jax.data.catalogue import missing_column
from iapo_jax.data.questions import question_text
from iapo_jax.errors import UserError, check_unicode
from iapo_jax.pretrained.control_tokens import Prompt, encode_hidden, hide, show
from iapo_jax.types import Prompts

R1_SYSTEM = (
    "You are a careful assistant. The user asks a question and you solve it. Reason first, then "
    "answer: put the reasoning between <think> and </think> tags and the final answer between "
    "<answer> and </answer> tags, like this: <think>\nyour reasoning\n</think>\n"
    "<answer>your answer</answer>"
)

ROLES = ("system", "developer", "user", "assistant", "tool")  # of a row's messages
_DEEPEST = 20  # levels of lists and objects in a message, such as its tool calls


def read_question(row: dict, where: str) -> str | list[dict]:
    """The `prompt` of a row, or else its `question`: a string or chat messages.

    Raises:
      UserError: naming the row.
    """
    question = row.get("question") if row.get("prompt") is None else row["prompt"]
    if question is None:
        raise UserError(f"{where}: {missing_column(row, 'prompt', 'question')}")
    if not isinstance(question, str | list) or not question:
        raise UserError(
            f"{where}: the question is {question!r:.60}; expected a non-empty string or a list of "
            "chat messages"
        )
    for message in question if isinstance(question, list) else []:
        texts = [message.get(k) for k in ("role", "content")] if isinstance(message, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{where}: the prompt contains {message!r:.60}; expected chat messages with string "
                "fields `role` and `content`"
            )
        if message["role"] not in ROLES:
            raise UserError(
                f"{where}: a message has the role {message['role']!r:.60}; expected "
                f"{', '.join(ROLES[:-1])} or {ROLES[-1]}"
            )
    if not question_text(question).strip():
        raise UserError(f"{where}: the question is empty: {question!r:.60}")
    return _map_texts(question, lambda text: check_unicode(text, f"{where}: the question"), where)


def _map_texts(value: Any, change: Callable[[str], str], where: str, depth: int = 0) -> Any:
    """Applies `change` to each text of a question, also in further fields of its messages."""
    if depth > _DEEPEST:
        raise UserError(
            f"{where}: a message has more than {_DEEPEST} levels of lists and objects; expected "
            "less nesting"
        )
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        pairs = [[name, part] for name, part in value.items()]
        return dict(_map_texts(pair, change, where, depth) for pair in pairs)
    if isinstance(value, list):
        return [_map_texts(part, change, where, depth + 1) for part in value]
    return value


def render_prompt(tokenizer: Any, question: str | list[dict], section: PromptSection) -> str:
    """The prompt's text: system, example, question, through the tokenizer's chat template."""
    return show(_render(tokenizer, question, section, "the question"))


def encode_prompt(
    tokenizer: Any,
    question: str | list[dict],
    section: PromptSection,
    where: str = "the question",
) -> Prompt:
    """The prompt's text and ids; its control tokens come from the template and the section only.

    Raises:
      UserError: beginning with `where`, if the tokenizer cannot encode the question in this way.
    """
    text = _render(tokenizer, question, section, where)
    check_unicode(text, where)
    return encode_hidden(tokenizer, text, where)


def encode_prompts(
    tokenizer: Any,
    questions: Sequence[str],
    *,
    system: str = "",
    instruction: str = "",
    multiple: int = 1,
) -> Prompts:
    """Questions as prompts, through the tokenizer's chat template where it has one.

    Control tokens that a question spells are encoded as plain text.

    Args:
      system: the system turn; none by default.
      instruction: added to each question, in the same turn.
      multiple: L is a multiple of this; batches with the same L share compiled programs.

    Returns:
      Tokens [P, L], where L is the length of the longest prompt, rounded up, and lengths [P].

    Raises:
      UserError: if the tokenizer cannot encode a question in this way.

    >>> from iapo_jax.pretrained.tokenization import load_tokenizer
    >>> tokenizer = load_tokenizer("experiments/arithmetic/model")
    >>> prompts = encode_prompts(tokenizer, ["1+2", "3-4+15"])
    >>> print(tokenizer.decode(prompts.tokens[1]), prompts.length)
    <user>3-4+15<assistant><think> [6 9]
    >>> encode_prompts(tokenizer, ["1+2", "3-4+15"], multiple=32).tokens.shape
    (2, 32)
    """
    section = PromptSection(system=system, instruction=instruction)
    rows = [encode_prompt(tokenizer, question, section).ids for question in questions]
    length = np.array([len(row) for row in rows], np.int32)
    longest = length.max(initial=0)
    tokens = np.zeros((len(rows), -(-longest // multiple) * multiple), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return Prompts(jnp.asarray(tokens), jnp.asarray(length))


def _render(tokenizer: Any, question: str | list[dict], section: PromptSection, where: str) -> str:
    """The prompt's text, with the question's control tokens hidden."""
    question = _map_texts(question, lambda text: hide(tokenizer, text), where)
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
        reason = show(str(error) or type(error).__name__).strip().splitlines()[0]
        roles = ", ".join(show(message["role"]) for message in messages)
        raise UserError(
            f"the tokenizer's chat template rejects the turns {roles}: {reason}"
        ) from error


def _ask(question: str, section: PromptSection) -> str:
    if not section.instruction:
        return question
    # An instruction that begins with white space needs no separator.
    separator = "" if section.instruction[0].isspace() else " "
    return f"{question}{separator}{section.instruction}"


def resolve_prompt(section: PromptSection, own: PromptSection) -> PromptSection:
    """The user's prompt, with the dataset's own text for each field that is None."""
    names = [field.name for field in dataclasses.fields(PromptSection)]
    unset = {name: getattr(own, name) for name in names if getattr(section, name) is None}
    return dataclasses.replace(section, **unset)
