"""The answers that a probe reads, as ids: reference answers, and the answers of a group."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from iapo_jax.answers.checker import extract_answer, same_answer
from iapo_jax.errors import UserError
from iapo_jax.pretrained import control_tokens, tokenization
from iapo_jax.pretrained.tokenization import Tokenizer
from iapo_jax.types import Answers

_CHARS_PER_TOKEN = 128  # only the first tokens are used: no need to encode a megabyte


def encode_answer(tokenizer: Tokenizer, text: str, end: str, width: int) -> list[int]:
    """The first `width` ids of an answer and its closing text; [] if the answer itself has none.

    The closing text is part of the event: without it, 1 would be a prefix of 12.

    Raises:
      UserError: if it spells a control token that this vocabulary cannot write as text.
    """
    text = text.strip()
    start = text[: width * _CHARS_PER_TOKEN]
    if not control_tokens.encode_text(tokenizer, start):
        return []
    after = end if start == text else ""
    return control_tokens.encode_text(tokenizer, start, after=after)[:width]


def _encode_own(tokenizer: Tokenizer, text: str | None, end: str, width: int) -> list[int]:
    """`encode_answer` of a completion's answer; [] if it cannot be written as text."""
    try:
        return encode_answer(tokenizer, text or "", end, width)
    except UserError:
        return []


def check_gold_answers(tokenizer: Tokenizer, golds: Sequence[str], end: str) -> None:
    """Checks that every answer has tokens to teacher-force.

    Raises:
      UserError: naming an answer that is empty or has no tokens.
    """
    for text in set(golds):
        if not encode_answer(tokenizer, text, end, 1):
            raise UserError(
                f"the answer {text!r} has no tokens; expected an answer to teacher-force"
            )


def tokenized_apart(
    tokenizer: Tokenizer, postfix: str, golds: Sequence[str], width: int
) -> list[str]:
    """Answers whose tokens would differ if postfix and answer were tokenized together.

    An example is -5 if `>-` is one token. At every prefix, the estimator then scores tokens that
    differ from those that the model usually writes.
    """
    start = tokenization.encode(tokenizer, postfix)
    encode = partial(control_tokens.encode_text, tokenizer)
    short = [text for text in dict.fromkeys(golds) if len(text) <= width * _CHARS_PER_TOKEN]
    return [
        text
        for text in short
        if encode(text.strip(), before=postfix) != start + encode(text.strip())
    ]


def count_longer(tokenizer: Tokenizer, golds: Sequence[str], end: str, width: int) -> int:
    """The number of answers that `encode_answer` truncates to `width` tokens."""
    return sum(len(encode_answer(tokenizer, text, end, width + 1)) > width for text in golds)


def make_answers(
    tokenizer: Tokenizer,
    *,
    estimator: str,
    reference: str = "gold",
    golds: Sequence[str | None],
    completions: Sequence[Sequence[str]],
    answer_end: str,
    width: int,
) -> Answers | None:
    """The answers that the estimator teacher-forces: int32 arrays; None for `answer_entropy`.

    Args:
      reference: for `answer_log_prob`, "gold" or each completion's "own" answer.
      golds: reference answers of P prompts; None if a prompt has none.
      completions: texts of G completions for each of them.
      width: A; longer answers are truncated to A tokens.

    Returns:
      `answer_log_prob`: one answer [P, 1 or G, 1, A]. `answer_set_entropy`: the gold answer and
      the distinct answers of the group, [P, 1, G + 1, A]; unused rows are empty. A completion
      without an answer adds none.
    """
    if estimator == "answer_entropy":
        return None
    encode = partial(_encode_own, tokenizer, end=answer_end, width=width)
    if estimator == "answer_set_entropy":
        rows = zip(golds, completions, strict=True)
        return _stack([[_candidates(encode, *row)] for row in rows], width)
    if reference == "gold":
        return _stack([[[(encode(gold), 0)]] for gold in golds], width)
    own = [[[(encode(extract_answer(text)), 0)] for text in group] for group in completions]
    return _stack(own, width)


def encode_answers(
    tokenizer: Tokenizer, answers: Sequence[str], *, end: str = "</answer>", max_length: int = 32
) -> Answers:
    """One reference answer for each of P prompts, for `answer_log_prob`.

    Args:
      end: the text that closes an answer; without it, the answer 1 would be a prefix of 12.
      max_length: A; longer answers are truncated to A tokens.

    Returns:
      Answers with tokens [P, 1, 1, A], shared by the completions of a prompt.

    Raises:
      UserError: if an answer spells a control token that this vocabulary cannot write as text.

    >>> from iapo_jax.pretrained.tokenization import load_tokenizer
    >>> found = encode_answers(load_tokenizer("experiments/arithmetic/model"), ["42", "-7"])
    >>> found.tokens.shape, found.length.ravel().tolist()
    ((2, 1, 1, 32), [3, 3])
    """
    rows = [[[(encode_answer(tokenizer, text, end, max_length), 0)]] for text in answers]
    return _stack(rows, max_length)


def _candidates(encode, gold: str | None, completions: Sequence[str]) -> list[tuple]:
    """(ids, meaning) of the distinct answers: the gold one, then the others sorted by text.

    Padded with empty answers to one more than the number of completions.
    """
    texts = {extract_answer(text) for text in completions}
    texts = ([gold] if gold else []) + sorted(text for text in texts if text and text != gold)
    seen, found, meanings = set(), [], []
    for text in texts:
        ids = encode(text)
        if not ids or tuple(ids) in seen:
            continue
        seen.add(tuple(ids))
        equal = [meaning for other, meaning in meanings if same_answer(text, other)]
        meanings.append((text, equal[0] if equal else len(meanings)))
        found.append((ids, meanings[-1][1]))
    return found + [([], 0)] * (len(completions) + 1 - len(found))


def _stack(rows: list[list[list[tuple]]], width: int) -> Answers:
    """(ids, meaning) at [P][G or 1][Y] as arrays."""
    shape = len(rows), len(rows[0]), len(rows[0][0])
    tokens = np.zeros((*shape, width), np.int32)
    length, meaning = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for index in np.ndindex(shape):
        ids, meaning[index] = rows[index[0]][index[1]][index[2]]
        length[index] = len(ids)
        tokens[index][: len(ids)] = ids
    return Answers(tokens, length, meaning)
