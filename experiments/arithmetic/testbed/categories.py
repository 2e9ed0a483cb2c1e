"""What each token of a completion is for, read back from its text.

The generator knows the category of what it writes; this finds it in what a model writes. On the
generator's own texts both agree (a test compares them).
"""

from collections.abc import Sequence

from testbed.pieces import CATEGORIES, FILLERS, Problem, split_tokens

READ = (*CATEGORIES, "wrong")
""""wrong": an equation that no step of the problem is, or a sentence that no piece is."""

_FILLERS = sorted((split_tokens(text) for text in FILLERS), key=len, reverse=True)
_OPENINGS = {
    "check ": "recheck",
    "we ": "restate",
    "left ": "restate",
    "wait": "hesitate",
    "the ": "hesitate",
}


def categorise(problem: Problem, tokens: Sequence[str]) -> list[str]:
    """The category of each token of a reasoning (what comes before the end of thinking).

    A step counts as needed where it is the next one that the problem needs, in short or in detail;
    said once more it is "second", and so is everything behind "again " that repeats a step.
    """
    found: list[str] = []
    pending, at, again = list(problem.steps), 0, False
    said = {text for step in problem.steps for text in (step.text, step.check, step.long) if text}
    while at < len(tokens):
        if (size := _filler(tokens, at)) and not again:
            found += ["filler"] * size
            at += size
            continue
        end = _sentence(tokens, at)
        opening, text = tokens[at], "".join(tokens[at:end]).removesuffix(". ")
        cut = not tokens[end - 1].startswith(".")  # the reasoning ends within the sentence
        if opening in _OPENINGS or (opening == "so " and tokens[at + 1 : at + 2] == ["it "]):
            category, again = _OPENINGS.get(opening, "hesitate"), False
        elif opening == "again ":
            category, again = "second", True
        elif not again and pending and _is(text, cut, (pending[0].text, pending[0].long)):
            category = "needed"
            pending.pop(0)
        elif _is(text, cut, said):
            category = "second"
        else:
            category, again = "wrong", False
        found += [category] * (end - at)
        at = end
    return found


def _is(text: str, cut: bool, known: Sequence[str] | set[str]) -> bool:
    return any(one and (one.startswith(text) if cut else one == text) for one in known)


def _filler(tokens: Sequence[str], at: int) -> int:
    """How many tokens of filler begin here; "so it is" is no filler."""
    if list(tokens[at : at + 2]) == ["so ", "it "]:
        return 0
    for known in _FILLERS:
        if list(tokens[at : at + len(known)]) == known:
            return len(known)
    return 0


def _sentence(tokens: Sequence[str], at: int) -> int:
    """Where the sentence that begins here ends: behind its full stop."""
    for end in range(at, len(tokens)):
        if tokens[end].startswith("."):
            return end + 1
    return len(tokens)
