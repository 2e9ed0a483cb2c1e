"""Worked reasoning for the arithmetic task, some of it redundant.

The problems come from `iapo_jax.data.arithmetic`. The worked reasoning of a problem is a list of
pieces: the steps that the answer needs, and around them redundant pieces (restating, filler,
rechecking, a second pass, hesitating). The category of each piece is known, so what a trained model
keeps and drops can be counted exactly. Every statement is true: there are no arithmetic errors.

All functions are pure and use only numpy and the standard library; randomness comes from a
``numpy.random.Generator`` argument.
"""

from collections.abc import Callable, Collection

import numpy as np
from testbed.pieces import (
    EARLY_SHARE,
    FILLERS,
    Piece,
    fit,
    split_tokens,
    supervised_row,
)

from iapo_jax.data.arithmetic import Problem, draw_below, draw_problem

MAX_TOKENS = 84
"""Longest reasoning, in tokens."""
WORDS = (
    "ok",
    "so",
    "hmm",
    "well",
    "now",
    "let",
    "me",
    "see",
    "we",
    "need",
    "check",
    "it",
    "is",
    "the",
    "answer",
    "wait",
    "again",
)
"""Every word that the generator writes."""


def draw_verbosity(rng: np.random.Generator) -> float:
    """How wordy one completion is: uniform on 0..1.3, clipped to 1."""
    return min(1.0, 1.3 * rng.random())


def draw_reasoning(
    rng: np.random.Generator,
    problem: Problem,
    verbosity: float | None = None,
    max_tokens: int = MAX_TOKENS,
) -> list[Piece]:
    """Worked reasoning: all needed steps in order, and redundant pieces around them.

    One verbosity (drawn unless given) scales the probability of every redundant piece of the
    completion. At 0 only the needed steps remain. Redundant pieces are dropped at random until the
    reasoning fits in ``max_tokens``.
    """
    v = draw_verbosity(rng) if verbosity is None else verbosity
    steps, inverses, answer = problem.steps, problem.inverses, problem.answer
    chance = rng.random
    pieces: list[Piece] = []

    if chance() < 0.65 * v:
        pieces.append(Piece(f"we need {problem.question}. ", "restate"))
    for step, inverse in zip(steps, inverses, strict=True):
        for share in (0.55, 0.2):
            if chance() < share * v:
                pieces.append(Piece(FILLERS[draw_below(rng, len(FILLERS))], "filler"))
        pieces.append(Piece(f"{step}. ", "needed"))
        if chance() < 0.42 * v:
            checked = inverse if chance() < 0.3 else step
            pieces.append(Piece(f"check {checked}. ", "recheck"))
    if chance() < 0.35 * v:
        pieces.append(Piece("wait. ", "hesitate"))
    if chance() < 0.6 * v * v:
        start = 0 if chance() < 0.5 else draw_below(rng, len(steps))
        again = "".join(f"{step}. " for step in steps[start:])
        pieces.append(Piece(f"again {again}", "second"))
    if chance() < 0.6 * v:
        text = "so it is" if chance() < 0.5 else "the answer is"
        pieces.append(Piece(f"{text} {answer}. ", "hesitate"))
    return fit(rng, pieces, max_tokens)


def sft_row(
    rng: np.random.Generator,
    tokenizer_encode: Callable[[str], list[str]] = split_tokens,
    *,
    exclude: Collection[str] = frozenset(),
    early_share: float = EARLY_SHARE,
    max_tokens: int = MAX_TOKENS,
    categories: bool = False,
) -> dict:
    """One supervised row, ``{"question", "answer", "completion": [[text, weight], ...]}``.

    `testbed.pieces.supervised_row` makes it from a random problem and its reasoning.

    Args:
        rng: source of randomness.
        tokenizer_encode: splits a text into tokens, strings that concatenate to it (a Hugging Face
            tokenizer's ``tokenize``, or the equivalent but faster ``split_tokens``).
        exclude: questions that must not be drawn.
        early_share: probability of an early row.
        max_tokens: length of the longest reasoning, before it is cut.
        categories: also give ``"categories"``, a list of ``[text, category]`` whose texts
            concatenate to the row's reasoning.
    """
    problem = draw_problem(rng)
    while problem.question in exclude:
        problem = draw_problem(rng)
    pieces = draw_reasoning(rng, problem, max_tokens=max_tokens)
    return supervised_row(
        rng,
        problem.question,
        problem.answer,
        pieces,
        early_share,
        tokenizer_encode,
        categories=categories,
    )
