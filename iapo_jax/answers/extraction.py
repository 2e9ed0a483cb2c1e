r"""Which text of a completion is its answer: explicit marks only, never "any number in the text".

The first table of `docs/answers.md` has the rules with examples. Time is linear in the length of
the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_ANSWER_CHARS = 2_000

_CLOSED_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)  # `\\.` steps over \{ and \}

_BARE_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]{0,9}([+-]?[0-9][0-9.,/]*)")


# Marks at the start of a line: GSM8K's `#### 12`, PRM800K's `# Answer`, and its bold variants.
_HASHES = re.compile(r"^[ \t]{0,9}####[ \t]{0,9}(?=[^\s#])", re.MULTILINE)

_HEADING = re.compile(
    r"^[ \t]{0,9}(?:#{1,6}[ \t]{0,9}|\*\*)(?:final )?answer[:*. \t]{0,9}$", re.MULTILINE | re.I
)

_PHRASE = re.compile(
    r"\banswer[*_]{0,3}[ \t]{0,9}(?:(?:is|are)\b[*_]{0,3}[ \t]{0,9}:?|:)"
    r"|答案(?:[是为][:：]?|[:：])",
    re.I,
)

_LAST_LINE = re.compile(r"A:[ \t]{0,9}(?=[-+$€£ .]{0,9}[0-9])")

_NUMERIC = re.compile(r"[-+$€£\\(\[{ .]{0,9}[0-9]")

_SENTENCE_END = re.compile(r"\\(?:\\|[{}$.])|。|[.?](?=[\s*\"]|$)|[{}$]")

_ABBREVIATION = re.compile(r"(?:\b[ap]\.m|\bno|\bRs)$", re.I)

_BOLD = re.compile(r"(?<![\w)}])\*\*([^*\n]{1,2000})\*\*(?![\w(])")

_CLOSING_BOLD = re.compile(r"^[*_]{1,3}(?=\s)")

_REASON = re.compile(r",? (?:because|since|as shown)\b|, (?:which|so|where|and (?:so|thus))\b")

_STATEMENT = re.compile(r"(?:so |thus |hence |therefore |)(?:,? ?)the\b", re.I)

_DOUBT = re.compile(r"\b(?:not|maybe|perhaps|either|or|unless|if)\b|n't\b", re.I)

_DISPLAYS = (("$$", "$$"), ("\\[", "\\]"))


def extract_answer(completion: str) -> str | None:
    r"""The final answer of a completion; None if it has none.

    The last complete `<answer>...</answer>` outside closed thinking is the answer; if it contains a
    box or a phrase, the answer is its last box, or else its last phrase. Without a span, the text
    after the last `</think>` counts (all of the text if it has no think tags, none of it if
    thinking never ends): its last `\boxed{}` or `\fbox{}`, or else its last mark in words:
    `#### X`, a heading `# Answer`, "the answer is X" or "Answer: X".

    >>> extract_answer(r"<think>\boxed{1}</think> so it is \boxed{2}.")
    '2'
    >>> extract_answer("<answer>The answer is 7.</answer>")
    '7'
    >>> extract_answer("it must be 12") is None
    True
    """
    said = _outside_thinking(completion)
    start = said.rfind("<answer>", 0, max(said.rfind("</answer>"), 0))
    if start >= 0:
        start += len("<answer>")
        span = said[start : said.find("</answer>", start)].strip()
        found = _marked(span, whole=False)
        return span if found is None else found
    _, closed, rest = completion.rpartition("</think>")
    if not closed and "<think>" in completion:
        return None
    return _marked(rest.partition("<think>")[0])


def _outside_thinking(text: str) -> str:
    """The text without `<think>...</think>`, whose opening tag may be in the prompt."""
    end = text.rfind("</think>")
    if end < 0:
        return text
    end += len("</think>")
    first, opened = text.find("</think>"), text.find("<think>")
    start = 0 if 0 <= opened < first else first + len("</think>")
    # Only up to the last closing tag: beyond it each opening tag would search to the end.
    return _CLOSED_THINKING.sub("", text[start:end]) + text[end:]


def _marked(text: str, *, whole: bool = True) -> str | None:
    """The last box, or else the last phrase.

    Args:
      whole: the text is not inside a span, so that `A: 12` is a line of GSM8K and not a choice.
    """
    box = _last_box(text)
    return _last_phrase(text, whole) if box is None else box


def _last_box(text: str) -> str | None:
    r"""The content of the last box that is not empty; `\boxed 4` counts, unclosed ones do not."""
    first = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if first < 0:
        return None
    opened, best = [], (-1, -1)
    for token in _BOX.finditer(text, first):
        symbol = token[0]
        if symbol == "}":
            if opened:
                box = opened.pop(), token.start()
                # an empty box is ignored: "put it in \boxed{}"
                if box > best and not text[box[0] : box[0] + 9].strip().startswith("}"):
                    best = box
        elif symbol == "{":
            opened.append(-1)
        elif len(symbol) > 2:
            opened.append(token.end())
    for bare in _BARE_BOX.finditer(text, first):
        best = max(best, (bare.start(1), bare.end(1)))
    return text[best[0] : best[1]].strip() if best[0] >= 0 else None


def _last_phrase(text: str, whole: bool) -> str | None:
    """The answer after the last mark in words."""
    text = text.rstrip()
    last_line = text.rfind("\n") + 1
    marks = [
        match.end()
        for pattern in (_HEADING, _PHRASE)
        for match in pattern.finditer(text)
        if match.end() < len(text)
    ]
    for match in _HASHES.finditer(text):
        # "#### Check" is a Markdown heading, unless it is the last line
        if _NUMERIC.match(text, match.end()) or match.end() >= last_line:
            marks.append(match.end())
    ending = _LAST_LINE.match(text, last_line)
    if ending and whole:
        marks.append(ending.end())
    return _statement(text[max(marks) :][: 2 * MAX_ANSWER_CHARS]) if marks else None


def _statement(text: str) -> str:
    """The answer at the start of a text: a display, or the rest of its sentence."""
    text = _CLOSING_BOLD.sub("", text).lstrip()
    for left, right in _DISPLAYS:
        if text.startswith(left) and right in text[len(left) :]:
            return text[len(left) :].partition(right)[0].strip()
    line = _sentence(text.partition("\n")[0])
    bold = _BOLD.match(line)
    line = bold[1] if bold else line.strip("*_ \t")
    line = _REASON.split(line, maxsplit=1)[0]
    # "the largest n is 34": the answer is what the sentence states of its subject
    if _STATEMENT.match(line) and not _DOUBT.search(line):
        line = re.split(r"\b(?:is|are|equals)\b(?: equal to)?:?", line)[-1]
    return line.strip().removesuffix(".").strip()


def _sentence(line: str) -> str:
    """The line up to the first full stop outside mathematics and braces."""
    dollars = line.count("$") % 2 == 0
    depth, inside = 0, False
    for token in _SENTENCE_END.finditer(line):
        symbol, at = token[0], token.start()
        if symbol.startswith("\\"):
            continue
        if symbol == "$":
            inside = dollars and not inside
        elif symbol in "{}":
            depth = max(0, depth + (1 if symbol == "{" else -1))
        elif symbol in ".?。" and not (
            depth or inside or _ABBREVIATION.search(line[max(0, at - 4) : at])
        ):
            return line[:at]
    return line


def whole_texts(prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    """Each completion, preceded by the `<think>` that its prompt may end in."""
    return [
        "<think>" + completion if prompt.rstrip().endswith("<think>") else completion
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
