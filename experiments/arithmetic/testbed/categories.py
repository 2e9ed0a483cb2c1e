"""The purpose of each token of a completion, read back from its text.

The generator knows the category of each piece that it writes; this module recovers it from the text
of a model. On the generator's own texts the two agree (a test compares them).
"""

from collections.abc import Sequence

from testbed.pieces import CATEGORIES, FILLERS, Problem, split_tokens

READ = (*CATEGORIES, "wrong")
""""wrong" is a sentence that is not a piece of this problem, such as an unrelated equation."""

_FILLERS = sorted((split_tokens(text) for text in FILLERS), key=len, reverse=True)


def categorize(problem: Problem, tokens: Sequence[str]) -> list[str]:
    """The category of each token of a reasoning (what comes before the end of thinking).

    A step is "needed" the first time that it is stated, in short or in detail, even if earlier
    steps were left out; a repetition is "second", and so is a step after "again ".
    """
    found: list[str] = []
    pending, at, again = list(problem.steps), 0, False
    said = _sentences(problem)
    while at < len(tokens):
        if size := _filler(tokens, at):
            found += ["filler"] * size
            at += size
            continue
        end = _sentence(tokens, at)
        text = "".join(tokens[at:end]).removesuffix(" ").removesuffix(".")
        cut = not tokens[end - 1].startswith(".")  # the reasoning ends within the sentence
        again |= text.startswith("again ")
        step = None
        if not again:
            step = next((s for s in pending if _is(text, cut, (s.text, s.long))), None)
        if step is not None:
            category = "needed"
            pending.remove(step)
        else:
            category = next((name for name in said if _is(text, cut, said[name])), "wrong")
            again &= category == "second"
        found += [category] * (end - at)
        at = end
    return found


def _sentences(problem: Problem) -> dict[str, set[str]]:
    """The texts of this problem's redundant pieces by category, without their full stops."""
    steps = problem.steps
    facts = {text for step in steps for text in (step.text, step.check)}
    second = facts | {step.long for step in steps}
    return {
        "second": second | {f"again {step.check}" for step in steps},
        "recheck": {f"check {fact}" for fact in facts},
        "restate": {f"we need {problem.question}", *(f"left {s.left}" for s in steps if s.left)},
        "hesitate": {"wait", f"so it is {problem.answer}", f"the answer is {problem.answer}"},
    }


def _is(text: str, cut: bool, known: Sequence[str] | set[str]) -> bool:
    return any(one and (one.startswith(text) if cut else one == text) for one in known)


def _filler(tokens: Sequence[str], at: int) -> int:
    """The number of filler tokens that begin here; "so it is" is not filler."""
    if list(tokens[at : at + 2]) == ["so ", "it "]:
        return 0
    for known in _FILLERS:
        if list(tokens[at : at + len(known)]) == known:
            return len(known)
    return 0


def _sentence(tokens: Sequence[str], at: int) -> int:
    """The end of the sentence that begins here: after its full stop."""
    for end in range(at, len(tokens)):
        if tokens[end].startswith("."):
            return end + 1
    return len(tokens)
