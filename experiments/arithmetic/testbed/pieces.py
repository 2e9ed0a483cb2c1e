"""Worked reasoning as pieces of known category, some of them redundant.

A problem has steps. Around the steps that its answer needs, `weave` puts redundant pieces:
restatements, filler, re-checks, a second pass, hesitation before the answer. One verbosity, drawn
for each completion, controls them all, so redundancy is coherent, as in real models, and not noise.
Every statement is true.

All functions are pure; randomness comes from a `numpy.random.Generator` argument.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from iapo_jax.data.arithmetic import draw_below

CATEGORIES = ("needed", "restate", "filler", "recheck", "second", "hesitate")
FILLERS = ("ok ", "so ", "hmm ", "well ", "now ", "let me see. ")

EARLY_SHARE = 0.28
"""Share of supervised rows whose reasoning is cut at a random token."""
EXIT = "</think><answer>"
CLOSE = "</answer>"

# How the tokenizer splits a text that a generator wrote; a test compares the two. The last
# alternative catches whatever no generator writes, so that no character is lost.
_SPLIT = re.compile(r"</?[a-z]+>|[a-z]+ ?|[0-9]|[+\-=?]|\. ?|\s|.")


class Piece(NamedTuple):
    """A part of the reasoning, and its purpose."""

    text: str
    category: str


class Step(NamedTuple):
    """One needed step, `text` and `check` without their full stop."""

    text: str  # "28*6=168"
    check: str  # the same fact in another form: "6*28=168"
    long: str = ""  # worked in detail, to the same result: "28*6=20*6+8*6=120+48=168"
    left: str = ""  # what is left to work out after it; "" if nothing is


class Problem(NamedTuple):
    """A question, its answer, and the steps from one to the other."""

    question: str
    answer: str
    steps: tuple[Step, ...]


class Habits(NamedTuple):
    """The probability of each kind of redundancy at verbosity 1."""

    restate: float = 0.8
    filler: tuple[float, ...] = (0.6, 0.3)  # before a step: for the first and the second filler
    recheck: float = 0.8
    left: float = 0.5  # restating what is left
    wait: float = 0.5
    second: float = 0.9
    conclude: float = 0.8
    long: tuple[float, float] = (0.3, 0.8)  # of a detailed step, at verbosity 0 and 1


def split_tokens(text: str) -> list[str]:
    """Splits reasoning into tokens, as strings that concatenate to `text`."""
    return _SPLIT.findall(text)


def draw_verbosity(rng: np.random.Generator) -> float:
    """How wordy one completion is: uniform on 0.1..1.3, clipped to 1."""
    return min(1.0, 0.1 + 1.2 * rng.random())


def weave(
    rng: np.random.Generator, problem: Problem, habits: Habits, verbosity: float
) -> list[Piece]:
    """The needed steps in order, with redundant pieces around them (none at verbosity 0)."""
    v, chance = verbosity, rng.random
    pieces: list[Piece] = []
    if chance() < habits.restate * v:
        pieces.append(Piece(f"we need {problem.question}. ", "restate"))
    for step in problem.steps:
        for share in habits.filler:
            if chance() < share * v:
                pieces.append(Piece(FILLERS[draw_below(rng, len(FILLERS))], "filler"))
        low, high = habits.long
        detailed = step.long and chance() < low + (high - low) * v
        pieces.append(Piece(f"{step.long if detailed else step.text}. ", "needed"))
        if chance() < habits.recheck * v:
            checked = step.check if chance() < 0.4 else step.text
            pieces.append(Piece(f"check {checked}. ", "recheck"))
        if step.left and chance() < habits.left * v:
            pieces.append(Piece(f"left {step.left}. ", "restate"))
    if chance() < habits.wait * v:
        pieces.append(Piece("wait. ", "hesitate"))
    if problem.steps and chance() < habits.second * v * v:
        start = 0 if chance() < 0.5 else draw_below(rng, len(problem.steps))
        again = "".join(f"{step.check}. " for step in problem.steps[start:])
        pieces.append(Piece(f"again {again}", "second"))
    if chance() < habits.conclude * v:
        text = "so it is" if chance() < 0.5 else "the answer is"
        pieces.append(Piece(f"{text} {problem.answer}. ", "hesitate"))
    return pieces


def fit(rng: np.random.Generator, pieces: Sequence[Piece], max_tokens: int) -> list[Piece]:
    """Drops redundant pieces at random until the rest has at most `max_tokens` tokens.

    Raises:
      ValueError: if the needed steps alone are longer.
    """
    pieces = list(pieces)
    while count_tokens(pieces) > max_tokens:
        redundant = [i for i, piece in enumerate(pieces) if piece.category != "needed"]
        if not redundant:
            raise ValueError(f"the needed steps alone exceed max_tokens={max_tokens}")
        del pieces[redundant[draw_below(rng, len(redundant))]]
    return pieces


def count_tokens(pieces: Sequence[Piece], category: str | None = None) -> int:
    """The number of tokens of the pieces, or of one category."""
    return sum(len(split_tokens(p.text)) for p in pieces if category in (None, p.category))


def join(pieces: Sequence[Piece]) -> str:
    """The reasoning as one text."""
    return "".join(piece.text for piece in pieces)


def cut_pieces(
    pieces: Sequence[Piece], n_tokens: int, tokenize: Callable[[str], list[str]] = split_tokens
) -> list[Piece]:
    """The first `n_tokens` tokens of the pieces (the last piece may be kept in part)."""
    kept: list[Piece] = []
    for piece in pieces:
        if n_tokens <= 0:
            break
        tokens = tokenize(piece.text)
        kept.append(Piece("".join(tokens[:n_tokens]), piece.category))
        n_tokens -= len(tokens)
    return kept


def supervised_row(
    rng: np.random.Generator,
    question: str,
    answer: str,
    pieces: Sequence[Piece],
    early_share: float,
    tokenize: Callable[[str], list[str]] = split_tokens,
    *,
    categories: bool = False,
) -> dict:
    """One supervised row, `{"question", "answer", "completion": [[text, weight], ...]}`.

    A normal row has the whole reasoning and the answer, all with weight 1. With probability
    `early_share` it is an early row: the reasoning is cut at a uniformly random token boundary,
    possibly before the first token or after the last. The exit that follows has weight 0, since the
    model should learn to answer when it is stopped, not to stop there; the answer has weight 1.
    `<think>` is not part of the completion, because the generation prompt ends with it.

    Args:
      categories: also give `"categories"`, a list of `[text, category]` whose texts concatenate to
        the row's reasoning.
    """
    if rng.random() < early_share:
        total = sum(len(tokenize(piece.text)) for piece in pieces)
        pieces = cut_pieces(pieces, draw_below(rng, total + 1), tokenize)
        tail = [[EXIT, 0], [answer + CLOSE, 1]]
    else:
        tail = [[EXIT + answer + CLOSE, 1]]
    head = [[join(pieces), 1]] if pieces else []
    row = {"question": question, "answer": answer, "completion": head + tail}
    return row | {"categories": [list(piece) for piece in pieces]} if categories else row
