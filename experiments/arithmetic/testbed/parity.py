"""*growing*: is the sum of the digits odd (1) or even (0)? `4718` -> `4:0. 7:1. 1:0. 8:0.`

A model cannot see this at a glance, and the initial model rarely works it out: most of its
reasoning stops before the last digit and guesses. Longer reasoning is correct, so a good rule must
let length grow here. Nothing is known until nearly the last digit.
"""

import numpy as np

from iapo_jax.data.arithmetic import draw_below
from testbed.pieces import Problem, Step

DIGITS = (7, 8, 9)
"""How many digits a problem may have."""
FULL, GLANCE = 0.12, 0.4
"""Shares of reasoning with all steps and with none; the rest has some of the first steps."""


def draw_problem(rng: np.random.Generator) -> Problem:
    """A problem of 7, 8 or 9 digits with all its steps."""
    digits = [draw_below(rng, 10) for _ in range(DIGITS[draw_below(rng, len(DIGITS))])]
    steps, odd = [], 0
    for digit in digits:
        odd = (odd + digit) % 2
        steps.append(Step(f"{digit}:{odd}", f"{digit}:{odd}"))
    return Problem("".join(map(str, digits)), str(odd), tuple(steps))


def draw_worked(rng: np.random.Generator, problem: Problem) -> Problem:
    """The problem with the steps that its supervised reasoning works out, which are rarely all."""
    kind, count = rng.random(), len(problem.steps)
    if kind >= FULL:
        count = 0 if kind < FULL + GLANCE else 1 + draw_below(rng, count - 1)
    return problem._replace(steps=problem.steps[:count])
