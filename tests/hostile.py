r"""Texts that a hostile model or data row could hold, and what must hold of every one of them.

Used by tests/test_hostile_text.py on hypothesis' texts, and by tests/faults/fuzz.py on atheris'.
"""

import resource
import time
import unicodedata

from iapo_jax.answers.equivalence import KINDS, algebra, decide
from iapo_jax.answers.extraction import extract_answer
from iapo_jax.rollout import rewards

# A number that no fragment holds and no expression of them gives.
FRESH = "73402139581"
_FRESH_START = FRESH[:5]
# Every way to mark an answer holds one of these.
MARKS = ("boxed", "fbox", "answer", "答案", "####", "a:")

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
MARKED = ["\\boxed{", "\\fbox{", "\\boxed 4", "#### ", "\n#### 7", "# Answer\n", "**Final Answer**"]
MARKED += ["the answer is ", "Answer: ", "answers are", "\nA: 12", "答案是", "答案：", "\\boxed{}"]
LATEX = ["{", "}", "\\{", "\\}", "\\left(", "\\right)", "\\left\\{", "\\frac{1}{", "\\frac12", "^{"]
LATEX += ["2^{", "_{7}", "\\sqrt{", "\\sqrt[3]", "\\text{", "\\mbox{cm}", "\\begin{pmatrix}", "&"]
LATEX += ["\\\\", "\\end{pmatrix}", "\\pm ", "\\cup ", "\\cap ", "\\in ", "\\infty", "\\pi", "\\%"]
LATEX += ["$", "$$", "\\(", "\\)", "\\[", "\\]", "\\", "\\overline{3}", "\\pmod{7}", "^\\circ"]
PLAIN = ["1", "12", "0.5", ".", ",", "1,234", "-", "+", "*", "**", "/", "=", "x", "y", "B", "(B) "]
PLAIN += ["(", ")", "[", "]", " ", "\n", "\t", " or ", " and ", "not ", "is ", "cm", "million", ":"]
PLAIN += ["10:30", "3:2", "4210_7", "1e9999", "1/0", "e", "!", "'", '"', "`", "_", "|", "because "]
STRANGE = [
    "１２",
    "٣",
    "²",
    "½",
    "⁵",
    "①",
    "𝟙",
    "Ⅳ",
    "\x00",
    "\ud800",
    "\udfff",
    "\u202e",
    "\u200b",
]
STRANGE += [
    "\ufeff",
    "字",
    "é",
    "e\u0301",
    "ſ",
    "ı",
    "İ",
    "\u212a",
    "🧮",
    "\x1b[31m",
    "\x85",
    "\u2028",
]
FRAGMENTS = TAGS + MARKED + LATEX + PLAIN + STRANGE

DIGITS = ("０１２３４５６７８９", "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "𝟎𝟏𝟐𝟑𝟒𝟓𝟔𝟕𝟖𝟗")


def check_completion(text: str) -> None:
    """What holds of the answer of every completion."""
    found = extract_answer(text)
    assert found is None or (found == found.strip() and found in text)
    rewards.format_reward([""], [text])
    if not any(mark in text.lower() for mark in MARKS):
        assert found is None, f"an answer without a mark: {found!r}"
    if free_of(text):
        assert decide(found or "", FRESH) is not True
        # The correct number, but unmarked, or inside a closed thought.
        thought = text
        for tag in ("<think>", "</think>"):
            while tag in thought:  # removing one tag may create another
                thought = thought.replace(tag, "|")
        for inner in (FRESH, rf"\boxed{{{FRESH}}}", f"<answer>{FRESH}</answer>"):
            whole = f"<think>{thought}{inner}</think> so it is that."
            assert decide(extract_answer(whole) or "", FRESH) is not True, whole
    if not any(mark in text.lower() for mark in MARKS):
        assert extract_answer(f"{text} {FRESH}") is None


def check_pair(one: str, other: str) -> None:
    """What holds of every two answers."""
    for kind in (None, *KINDS):
        verdict = decide(one, other, kind)
        assert verdict in (True, False, None)
        if not one.strip() or not other.strip():
            assert verdict is False
    if one.strip():
        assert decide(one, one) is True
    if max(len(one), len(other)) <= 2_000:
        assert all(isinstance(text, str) for text in algebra(one, other))
    if free_of(one):
        for kind in (None, *KINDS):
            assert decide(one, FRESH, kind) is not True
    for digits in DIGITS:
        respelt = FRESH.translate(str.maketrans("0123456789", digits))
        for text in (respelt, f"{one}{respelt}", f"{respelt}{one}", f"{one} {respelt} {other}"):
            assert decide(text, FRESH) is not True or text.strip() == FRESH


def free_of(text: str) -> bool:
    """Whether the text does not even contain the start of the fresh number, in any digits."""
    digits = "".join(
        str(unicodedata.digit(char)) for char in text if unicodedata.digit(char, -1) >= 0
    )
    return _FRESH_START not in digits


def timed(check, *texts: str) -> None:
    """Runs `check(*texts)`, which must take time linear in their lengths, even on a slow core."""
    start = time.process_time()
    check(*texts)
    took = time.process_time() - start
    allowed = 5.0 + sum(map(len, texts)) / 20_000
    assert took < allowed, f"{took:.1f} s of processor, {allowed:.1f} s expected at most"


def resident() -> float:
    """The largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
