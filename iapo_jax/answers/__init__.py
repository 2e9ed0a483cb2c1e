"""Which text of a completion is its answer, and when two answers are equal. No JAX.

`docs/answers.md` states the policy with examples.
"""

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
