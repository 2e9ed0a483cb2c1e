"""What the answer of a completion is, and when two answers are the same. No JAX."""

from iapo_jax.answers.checker import (
    AnswerChecker,
    answers_match,
    are_correct,
    is_correct,
)
from iapo_jax.answers.extraction import extract_answer

__all__ = [
    "AnswerChecker",
    "answers_match",
    "are_correct",
    "extract_answer",
    "is_correct",
]
