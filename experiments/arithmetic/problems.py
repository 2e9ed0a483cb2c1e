"""Multi-step arithmetic with worked reasoning, some of it redundant.

A problem is three to five two-digit numbers joined by ``+`` and ``-``, such that every partial
result has two digits as well. Its worked reasoning is a list of pieces: the steps that the answer
needs, and around them pieces that it does not (restating, filler, rechecking, a second pass,
hesitating). The category of each piece is known, so what a trained model keeps and drops can be
counted exactly. Everything written is true: there are no arithmetic errors.

Pure functions on numpy and the standard library; every source of chance is a
``numpy.random.Generator`` passed in.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

LOW, HIGH = 10, 99
"""Every number written (operands, partial results, answer) lies in LOW..HIGH."""
LENGTHS = (3, 4, 5)
"""How many numbers a problem may have."""
MAX_TOKENS = 84
"""Longest reasoning, in tokens."""
EARLY_SHARE = 0.28
"""Share of supervised rows whose reasoning is cut at a random token."""

CATEGORIES = ("needed", "restate", "filler", "recheck", "second", "hesitate")
FILLERS = ("ok ", "so ", "hmm ", "well ", "now ", "let me see. ")
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

# How the tokenizer splits a text that the generator wrote; a test compares the two. The last
# alternative catches whatever the generator never writes, so that no character is lost.
PATTERN = r"[a-z]+ ?|[0-9]|[+\-=?]|\. ?|\s|."
_SPLIT = re.compile(PATTERN)

EXIT = "</think><answer>"
CLOSE = "</answer>"


class Piece(NamedTuple):
    """A stretch of reasoning and what it is for."""

    text: str
    category: str


@dataclass(frozen=True)
class Problem:
    """``numbers[0] signs[0] numbers[1] signs[1] ...``, worked from the left."""

    numbers: tuple[int, ...]
    signs: tuple[str, ...]

    @property
    def partials(self) -> list[int]:
        """The running result, from the first number to the answer."""
        out = [self.numbers[0]]
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            out.append(out[-1] + number if sign == "+" else out[-1] - number)
        return out

    @property
    def question(self) -> str:
        pairs = zip(self.signs, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(f"{sign}{number}" for sign, number in pairs)

    @property
    def answer(self) -> str:
        return str(self.partials[-1])

    @property
    def steps(self) -> list[str]:
        """``["12+34=46", "46-15=31", ...]``."""
        at = self.partials
        return [
            f"{at[i]}{sign}{self.numbers[i + 1]}={at[i + 1]}" for i, sign in enumerate(self.signs)
        ]

    @property
    def inverses(self) -> list[str]:
        """The steps read backwards: ``["46-34=12", "31+15=46", ...]``."""
        at = self.partials
        undo = {"+": "-", "-": "+"}
        return [
            f"{at[i + 1]}{undo[sign]}{self.numbers[i + 1]}={at[i]}"
            for i, sign in enumerate(self.signs)
        ]


def split_tokens(text: str) -> list[str]:
    """The tokens of a reasoning text (no tags in it), as strings that concatenate to ``text``."""
    return _SPLIT.findall(text)


def _below(rng: np.random.Generator, n: int) -> int:
    """A uniform integer in 0..n-1 (several times faster than ``rng.integers`` for one draw)."""
    return int(rng.random() * n)


def draw_problem(rng: np.random.Generator) -> Problem:
    """A problem of 3, 4 or 5 numbers (equally likely) whose partial results stay in range."""
    at = LOW + _below(rng, HIGH - LOW + 1)
    numbers, signs = [at], []
    for _ in range(LENGTHS[_below(rng, len(LENGTHS))] - 1):
        room = {"+": HIGH - at - LOW + 1, "-": at - 2 * LOW + 1}  # how many operands are possible
        possible = [sign for sign in "+-" if room[sign] > 0]
        sign = possible[_below(rng, len(possible))]
        number = LOW + _below(rng, room[sign])
        at = at + number if sign == "+" else at - number
        numbers.append(number)
        signs.append(sign)
    return Problem(tuple(numbers), tuple(signs))


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

    One verbosity (drawn unless given) drives the chance of every redundant piece of the
    completion. At 0 only the needed steps are left. Redundant pieces are dropped at random until
    the whole fits in ``max_tokens``.
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
                pieces.append(Piece(FILLERS[_below(rng, len(FILLERS))], "filler"))
        pieces.append(Piece(f"{step}. ", "needed"))
        if chance() < 0.42 * v:
            checked = inverse if chance() < 0.3 else step
            pieces.append(Piece(f"check {checked}. ", "recheck"))
    if chance() < 0.35 * v:
        pieces.append(Piece("wait. ", "hesitate"))
    if chance() < 0.6 * v * v:
        start = 0 if chance() < 0.5 else _below(rng, len(steps))
        again = "".join(f"{step}. " for step in steps[start:])
        pieces.append(Piece(f"again {again}", "second"))
    if chance() < 0.6 * v:
        text = "so it is" if chance() < 0.5 else "the answer is"
        pieces.append(Piece(f"{text} {answer}. ", "hesitate"))
    return _fit(rng, pieces, max_tokens)


def _fit(rng: np.random.Generator, pieces: list[Piece], max_tokens: int) -> list[Piece]:
    """Drop redundant pieces at random until the rest has at most ``max_tokens`` tokens."""
    pieces = list(pieces)
    while count_tokens(pieces) > max_tokens:
        redundant = [i for i, piece in enumerate(pieces) if piece.category != "needed"]
        if not redundant:
            raise ValueError(f"the needed steps alone exceed max_tokens={max_tokens}")
        del pieces[redundant[_below(rng, len(redundant))]]
    return pieces


def count_tokens(pieces: Sequence[Piece], category: str | None = None) -> int:
    """Tokens of the pieces, of one category if named."""
    return sum(len(split_tokens(p.text)) for p in pieces if category in (None, p.category))


def join(pieces: Sequence[Piece]) -> str:
    """The reasoning as one text."""
    return "".join(piece.text for piece in pieces)


def cut_pieces(
    pieces: Sequence[Piece], n_tokens: int, tokenize: Callable[[str], list[str]] = split_tokens
) -> list[Piece]:
    """The first ``n_tokens`` tokens of the pieces (the last piece may be kept in part)."""
    kept: list[Piece] = []
    for piece in pieces:
        if n_tokens <= 0:
            break
        tokens = tokenize(piece.text)
        kept.append(Piece("".join(tokens[:n_tokens]), piece.category))
        n_tokens -= len(tokens)
    return kept


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

    A normal row is the whole reasoning and the answer, all with weight 1. An early row has its
    reasoning cut at a uniformly random token boundary (before the first token and after the last
    included); the exit that follows has weight 0, since the model is to answer when made to stop
    and not to learn to stop there; the answer has weight 1. A cut at 0 leaves no reasoning
    segment. ``<think>`` is not part of the completion: the generation prompt ends in it.

    Args:
        rng: source of chance.
        tokenizer_encode: a text's tokens as strings that concatenate to the text (a Hugging Face
            tokenizer's ``tokenize``, or the equal and faster ``split_tokens``).
        exclude: questions that must not be drawn.
        early_share: probability of an early row.
        max_tokens: longest reasoning before the cut.
        categories: also give ``"categories"``, a list of ``[text, category]`` whose texts
            concatenate to the row's reasoning.
    """
    problem = draw_problem(rng)
    while problem.question in exclude:
        problem = draw_problem(rng)
    pieces = draw_reasoning(rng, problem, max_tokens=max_tokens)
    if rng.random() < early_share:
        total = sum(len(tokenizer_encode(piece.text)) for piece in pieces)
        pieces = cut_pieces(pieces, _below(rng, total + 1), tokenizer_encode)
        tail = [[EXIT, 0], [problem.answer + CLOSE, 1]]
    else:
        tail = [[EXIT + problem.answer + CLOSE, 1]]
    head = [[join(pieces), 1]] if pieces else []
    row = {"question": problem.question, "answer": problem.answer, "completion": head + tail}
    if categories:
        row["categories"] = [list(piece) for piece in pieces]
    return row


def problem_rows(
    seed: int | Sequence[int], n: int, exclude: Collection[str] = frozenset()
) -> list[dict[str, str]]:
    """``n`` rows ``{"question", "answer"}``, questions distinct and none of them in ``exclude``."""
    rng = np.random.default_rng(seed)
    rows: dict[str, str] = {}
    while len(rows) < n:
        problem = draw_problem(rng)
        if problem.question not in exclude:
            rows.setdefault(problem.question, problem.answer)
    return [{"question": question, "answer": answer} for question, answer in rows.items()]
