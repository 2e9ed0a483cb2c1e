"""The result of probing one completion, as shown in the JSON file, the page and the terminal."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

FAINT = 0.1  # nats; a scale reaches at least this far, so that rounding is not shown as information


class Inspection(NamedTuple):
    """The result of probing one completion of T tokens; information in nats."""

    prompt: str = ""  # as the model reads it
    completion: str = ""
    prompt_ids: list[int] = []
    completion_ids: list[int] = []  # T, with the stop token where one was drawn
    postfix_ids: list[int] = []  # follows every prefix
    answer_ids: list[list[int]] = []  # teacher-forced after it, with the closing text
    answer_meanings: list[int] = []  # one for each of them; equal if two are the same answer
    tokens: list[str] = []  # T, the text of each id; bytes of a split character as \xf0
    uncertainty: list[float] = []  # T + 1: u_t about the answer after t tokens
    informativeness: list[float] = []  # T: u_{t-1} - u_t while thinking, then 0
    entropy: list[float] = []  # T: of the distribution before each token, without top-p or top-k
    log_prob: list[float] = []  # T: of each token
    thinking_length: int = 0  # tokens before the end of thinking; without one, all but a stop token
    estimator: str = ""
    reference: str = "gold"  # whose answer `answer_log_prob` teacher-forces: gold, or its own
    temperature: float = 1.0  # of `log_prob` and `entropy`; that of the probe is 1
    postfix: str = ""
    answer: str | None = None  # the reference answer, if one is given
    extracted: str | None = None  # the completion's own, if it has one
    correct: bool | None = None  # None without a reference answer
    finished: bool = False  # whether a stop token ended it


def to_json(inspection: Inspection) -> dict[str, Any]:
    """The fields by name."""
    return inspection._asdict()


def total(inspection: Inspection) -> float:
    """The information of all thinking: u_0 - u_(end of thinking), in nats."""
    return inspection.uncertainty[0] - inspection.uncertainty[inspection.thinking_length]


def signed(nats: float) -> str:
    """+1.234 or -1.234; without a sign where it rounds to 0."""
    text = f"{nats:+.3f}"
    return text if shows(nats) else text[1:]


def shows(nats: float) -> bool:
    """Whether the value is not 0 when rounded to three decimals."""
    return float(f"{nats:.3f}") != 0


def why_certain(inspection: Inspection) -> str:
    """Why u is 0 throughout, if the estimator has nothing to be uncertain about; otherwise ""."""
    if inspection.estimator == "answer_log_prob" and not inspection.answer_ids:
        return "there is no answer to teacher-force, so u is 0"
    meanings = set(inspection.answer_meanings)
    if inspection.estimator == "answer_set_entropy" and len(meanings) < 2:
        return (
            "within information.max_answer_length tokens, the set has fewer than two different "
            "answers, so u is 0"
        )
    return ""


def color_scale(inspections: Sequence[Inspection]) -> float:
    """The nats of the strongest color; all completions share one scale."""
    return max([FAINT, *(abs(s) for one in inspections for s in one.informativeness)])


def strength(value: float, scale: float) -> float:
    """A token's color, -1 to 1: the square root of its share of the scale, to show small values."""
    return math.copysign(math.sqrt(min(abs(value) / scale, 1.0)), value)


def visible(text: str) -> str:
    """The text with invisible and control characters made visible."""
    names = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(names.get(char) or _escape(char) for char in text)


def _escape(char: str) -> str:
    if char == " " or (char.isprintable() and not "\u200b" <= char <= "\u200f"):
        return char
    return f"\\u{ord(char):04x}" if ord(char) > 255 else f"\\x{ord(char):02x}"
