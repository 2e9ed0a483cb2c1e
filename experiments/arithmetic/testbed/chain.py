"""*chain*: running sums modulo ten, `3+5+7+2` -> `3+5=8. 8+7=5. 5+2=7.`

The negative control for information: without the last operand every digit is equally likely, so all
the information about the answer is in one token. The shortest correct chain is known exactly: every
step once.
"""

import numpy as np

from iapo_jax.data.arithmetic import draw_below
from testbed.pieces import Problem, Step

NUMBERS = (4, 5, 6)
"""How many digits a problem may have."""


def draw_problem(rng: np.random.Generator) -> Problem:
    """A problem of 4, 5 or 6 digits."""
    count = NUMBERS[draw_below(rng, len(NUMBERS))]
    digits = [draw_below(rng, 10) for _ in range(count)]
    steps, at = [], digits[0]
    for place, digit in enumerate(digits[1:], 2):
        result = (at + digit) % 10
        left = "+".join(map(str, [result, *digits[place:]])) if place < count else ""
        steps.append(Step(f"{at}+{digit}={result}", f"{digit}+{at}={result}", left=left))
        at = result
    return Problem("+".join(map(str, digits)), str(at), tuple(steps))
