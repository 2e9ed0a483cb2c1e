"""Which point of a method's grid is run again: decided on the selection split alone."""

from collections.abc import Sequence

from sweep.records import Result

TOLERANCE = 0.02
"""What a point's accuracy may lie below the method's best."""


def choose(results: Sequence[Result]) -> Result:
    """The shortest of those whose accuracy is within `TOLERANCE` of the best of the grid.

    The same for every method: it must first be as right as it can be, then short. Accuracy per
    token would choose models that answer at once.
    """
    accuracy = {one.choice: float(one.outcomes["select"].correct.mean()) for one in results}
    length = {one.choice: float(one.outcomes["select"].length.mean()) for one in results}
    best = max(accuracy.values())
    allowed = [one for one in results if accuracy[one.choice] >= best - TOLERANCE - 1e-9]
    return min(allowed, key=lambda one: (length[one.choice], -accuracy[one.choice], one.choice))
