r"""The text of questions: normal form, repair of damage, overlap and hold-out.

Two questions are the same if their normal forms are equal. The normal form removes differences of
notation (Unicode forms, case, white space, dollar signs, LaTeX spacing and sizes, punctuation at
the end) and keeps signs, digits and letters: `1+2`, `1-2` and `-1+2` are three questions, and `5`
and `5!` are two. It removes white space beside a symbol and keeps it between words: `x + y` becomes
`x+y`, but `1 2` does not become `12`.
"""

import bisect
import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from iapo_jax.errors import UserError

Question = str | list[dict]  # a text, or chat messages


def question_text(question: Question) -> str:
    """The text of a question; for chat messages, their contents joined."""
    if isinstance(question, str):
        return question
    return "\n\n".join(message["content"] for message in question)


# NFKC turns x² into x2, and leaves the various minus signs alone.
_CHARACTERS = str.maketrans(
    {"²": "^2", "³": "^3", "−": "-", "–": "-", "—": "-", "‐": "-", "‘": "'", "’": "'"}
    | {"“": '"', "”": '"', "`": "'", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "×": r"\times "}
)

_SAME_COMMANDS = {"le": "leq", "ge": "geq", "ne": "neq", "leqslant": "leq", "geqslant": "geq"} | {
    name: "frac" for name in ("dfrac", "tfrac", "cfrac")
}


_SAME_COMMANDS |= {"ldots": "dots", "cdots": "dots", "dotsc": "dots", "dotsb": "dots"}


_NO_COMMANDS = {
    "left", "right", "big", "bigl", "bigr", "bigg", "biggl", "biggr", "displaystyle", "textstyle",
    "limits", "nolimits", "quad", "qquad", "thinspace", "text", "textrm", "textbf", "textit",
    "mbox", "mathrm", "mathbf", "mathit", "operatorname",
}  # fmt: skip

_COMMAND = re.compile(r"\\([a-z]+)")
_SPACING = re.compile(r"\\[,;:! ()\[\]]|[$~]")
_LINES = re.compile(r"\\(?:begin|end)\{(?:align|aligned|equation|gather|gathered)\*?\}")
_ONE_IN_BRACES = re.compile(r"(?<!\\)([a-z]?)\{([^\W_])\}")  # x^{2} is x^2
_BEFORE_DIGIT = re.compile(r"(\\[a-z]+) (?=\d)")
_WHITE = re.compile(r"(?<![^\W_])\s+|\s+(?![^\W_])")


def _same_command(match: re.Match) -> str:
    name = match[1]
    return " " if name in _NO_COMMANDS else "\\" + _SAME_COMMANDS.get(name, name)


def normalize(question: Question) -> str:
    """The normal form of a question, for comparison only."""
    text = question_text(question).translate(_CHARACTERS)
    text = unicodedata.normalize("NFKC", text).casefold()
    text = text.replace("\\\\", "\n").replace("{,}", ",")  # a line break is white space
    text = _SPACING.sub(" ", text)
    if "\\" in text:
        text = _COMMAND.sub(_same_command, _LINES.sub(" ", text))
    text = _WHITE.sub("", " ".join(text.split()))
    text = _ONE_IN_BRACES.sub(lambda match: f"{match[1]} {match[2]}".lstrip(), text)
    text = _BEFORE_DIGIT.sub(r"\1", text).replace(r"\{", "{").replace(r"\}", "}")
    # `!` stays, as a factorial; at the start `.5` and `-5` are numbers.
    return text.rstrip(".,;:?\"' ").lstrip("\"' ")


# ------------------------------------------------------------------------------- damage

# A reader of escapes turns the `\f` of `\frac` into a form feed, and so on. For each control
# character: the remainders of command names that are not words, so that the repair is certain.
_ENDS = r"(?![A-Za-z])"

_EATEN = {
    "\f": ("f", rf"rac|orall{_ENDS}|loor{_ENDS}"),
    "\b": ("b", rf"eta{_ENDS}|inom|oxed|egin\{{|ar\{{|ig[cl]|ullet{_ENDS}|mod{_ENDS}|oldsymbol"),
    "\t": (
        "t",
        rf"ext(?:bf|it|rm)?\{{|imes{_ENDS}|heta{_ENDS}|riangle|frac|an(?=[\\(^{{])|au{_ENDS}",
    ),
    "\n": ("n", rf"abla{_ENDS}|eq{_ENDS}|otin{_ENDS}|subseteq{_ENDS}"),
    "\r": ("r", rf"ight|ho{_ENDS}|angle{_ENDS}|floor|ceil|brace"),
    "\v": ("v", rf"ec\{{|ert{_ENDS}|arphi|artheta|arepsilon|ee{_ENDS}|dots{_ENDS}"),
    "\a": ("a", rf"ngle{_ENDS}|lpha{_ENDS}|pprox|st{_ENDS}"),
}

_EATEN_PATTERNS = [
    (re.compile(f"{character}(?={rest})"), "\\" + letter)
    for character, (letter, rest) in _EATEN.items()
]


# In TeX's font encoding 0x0B is the ligature ff and 0x0C is fi. Texts extracted from PDF files
# have the byte beside the letters or in place of them; only words that it completes are certain.
_LIGATURES = [
    (re.compile("(?<=fi)\f(?=[a-z])|\f(?=fi[a-z])"), ""),
    (re.compile("(?<=ff)\v(?=[a-z])|\v(?=ff[a-z])"), ""),
    (
        re.compile(rf"(?<![A-Za-z])\f(?=(?:nds?|nding|rst|ves?|gures?|nite|nal){_ENDS})"),
        "fi",
    ),
    (re.compile(rf"(?<=[Dd]e)\f(?=ne[ds]?{_ENDS})|(?<=[Ii]n)\f(?=nite)"), "fi"),
]

_PAGE_BREAK = re.compile("(?<![A-Za-z])[\f\v]+(?![A-Za-z])")


# The remainder of \to, \top and \tan may be a word after a real tab.
_DAMAGE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]|\t(?:o|op|an)(?![A-Za-z])")


def repair(text: str) -> str | None:
    r"""The text with its lost escapes restored; None if damage remains.

    A form feed or a vertical tab between two non-letters is white space, and so are tabs and line
    ends. A newline that may have been the `\n` of `\nu` stays.
    """
    for pattern, replacement in _LIGATURES:
        text = pattern.sub(replacement, text)
    for pattern, replacement in _EATEN_PATTERNS:
        text = pattern.sub(lambda match, r=replacement: r, text)
    text = _PAGE_BREAK.sub(" ", text)
    return None if _DAMAGE.search(text) else text


# ------------------------------------------------------------------- overlap and hold-out


_LONG = 40  # characters of a normal form that two problems do not share by chance
_MARKS = ".?!;"  # end a sentence


def overlap(training: Sequence[Question], evaluation: Sequence[Question]) -> list[int]:
    """The indices of the evaluation questions that are in the training data, by normal form.

    A long evaluation question also counts if a training question begins with it and adds a
    sentence, such as "Find the value of m + n.", which turns answers into integers.
    """
    ordered = sorted({normalize(question) for question in training})
    return [i for i, question in enumerate(evaluation) if _seen(normalize(question), ordered)]


def _seen(form: str, ordered: list[str]) -> bool:
    ends = [form, *(form + mark for mark in _MARKS if len(form) >= _LONG)]
    places = [(end, bisect.bisect_left(ordered, end)) for end in ends]
    found = [(end, ordered[place]) for end, place in places if place < len(ordered)]
    return any(other == end if end == form else other.startswith(end) for end, other in found)


def seen_in(evaluation: Sequence[Question], training: Sequence[Question]) -> list[int]:
    """The indices of the training questions that `overlap` finds in the evaluation."""
    forms = {normalize(question) for question in evaluation}

    def seen(form: str) -> bool:
        ends = (i for i in range(_LONG, len(form)) if form[i] in _MARKS)
        return form in forms or any(form[:i] in forms for i in ends)

    return [i for i, question in enumerate(training) if seen(normalize(question))]


def check_overlap(
    training: Sequence[Question],
    evaluation: Sequence[Question],
    training_name: str,
    evaluation_name: str,
) -> None:
    """Checks that training and evaluation share no question.

    Raises:
      UserError: with both names, the count and the first shared question.
    """
    shared = overlap(training, evaluation)
    if shared:
        first = " ".join(question_text(evaluation[shared[0]]).split())
        raise UserError(
            f"{evaluation_name} shares {len(shared):,} of its {len(evaluation):,} questions with "
            f"the training data {training_name}, the first of them {first!r:.120}; expected "
            "held-out problems"
        )


def hold_out(count: int, questions: Sequence[Question], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, held-out) row indices, each in order.

    Holds out the `count` distinct questions whose hash of (seed, normal form) is smallest. So the
    split does not depend on the order of rows, equal questions are on the same side, and k added
    rows move at most k other questions.

    Raises:
      UserError: if no question would be left for training.
    """
    keys = [
        hashlib.sha256(f"{seed}\n{normalize(question)}".encode()).digest() for question in questions
    ]
    ordered = sorted(set(keys))
    if not 0 <= count < len(ordered):
        raise UserError(
            f"cannot hold out {count:,} of {len(ordered):,} distinct questions; expected at most "
            f"{len(ordered) - 1:,}, so that at least one remains for training"
        )
    held = set(ordered[:count])
    out = np.asarray([key in held for key in keys], bool)
    return np.flatnonzero(~out), np.flatnonzero(out)
