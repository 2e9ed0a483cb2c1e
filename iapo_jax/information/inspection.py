"""One completion under the probe, as it is written to JSON and shown."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

FAINT = 0.1  # nats; a scale never ends below it, so that rounding is not shown as information


class Inspection(NamedTuple):
    """What is known of one completion; T tokens, information in nats."""

    prompt: str = ""  # as the model reads it
    completion: str = ""
    prompt_ids: list[int] = []
    completion_ids: list[int] = []  # T, with the stop token where one was drawn
    postfix_ids: list[int] = []  # what is put behind every prefix
    answer_ids: list[list[int]] = []  # what is teacher-forced behind it, with what closes it
    answer_meanings: list[int] = []  # of each of them; equal where two are the same answer
    tokens: list[str] = []  # T, the text of each id; bytes of a split character as \xf0
    uncertainty: list[float] = []  # T + 1: u_t about the answer after t tokens, to the very end
    informativeness: list[float] = []  # T: u_{t-1} - u_t while thinking, then 0
    entropy: list[float] = []  # T: of the distribution before each token, without top-p or top-k
    log_prob: list[float] = []  # T: of each token
    thinking_length: int = 0  # tokens before the end of thinking; all, if it never ends
    estimator: str = ""
    reference: str = "gold"  # whose answer `answer_log_prob` teacher-forces: gold, or its own
    temperature: float = 1.0  # of `log_prob` and `entropy`; the probe's is 1
    postfix: str = ""
    answer: str | None = None  # the gold one, if it was told
    extracted: str | None = None  # the completion's own, if it has one
    correct: bool | None = None  # None where nobody told what is right
    finished: bool = False  # whether a stop token ended it


def to_json(one: Inspection) -> dict[str, Any]:
    """The fields by name."""
    return one._asdict()


def total(one: Inspection) -> float:
    """The information of all thinking: u_0 - u_(end of thinking), in nats."""
    return one.uncertainty[0] - one.uncertainty[one.thinking_length]


def signed(nats: float) -> str:
    """+1.234 or -1.234; without a sign where it rounds to nothing."""
    text = f"{nats:+.3f}"
    return text if told_something(nats) else text[1:]


def told_something(nats: float) -> bool:
    """Whether there is anything to see of it in three decimals."""
    return float(f"{nats:.3f}") != 0


def why_certain(one: Inspection) -> str:
    """Why u is 0 from the start, where the estimator had nothing to be unsure of; else ""."""
    if one.estimator == "answer_log_prob" and not one.answer_ids:
        return "no answer to teacher-force: u is 0"
    if one.estimator == "answer_set_entropy" and len(set(one.answer_meanings)) < 2:
        return (
            "fewer than two answers that differ within information.max_answer_length, "
            "nothing to be unsure of: u is 0"
        )
    return ""


def color_scale(inspections: Sequence[Inspection]) -> float:
    """Nats that the strongest color stands for, one scale for all completions."""
    return max([FAINT, *(abs(s) for one in inspections for s in one.informativeness)])


def strength(value: float, scale: float) -> float:
    """A token's color, -1 to 1: the root of its share of the scale, so that small ones show."""
    return math.copysign(math.sqrt(min(abs(value) / scale, 1.0)), value)


def visible(text: str) -> str:
    """A token's text with what a terminal or a reader would not see, or obey, made visible."""
    names = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    shown = [names.get(char) or _spell(char) for char in text]
    return "".join(shown)


def _spell(char: str) -> str:
    if char == " " or (char.isprintable() and not "\u200b" <= char <= "\u200f"):
        return char
    return f"\\u{ord(char):04x}" if ord(char) > 255 else f"\\x{ord(char):02x}"
