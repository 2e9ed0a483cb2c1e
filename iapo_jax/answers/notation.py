r"""A normal form of answers as text: `\dfrac12` and `½` become `\frac{1}{2}`.

The notation changes, never the value. Texts are short (`extraction.MAX_ANSWER_CHARS`).
"""

from __future__ import annotations

import functools
import re

_CHARACTERS = {
    **dict.fromkeys("\u2212\u2013\u2012\u2010\ufe63\uff0d", "-"),
    **dict.fromkeys("\u00a0\u2009\u202f\u2002\u2003\u3000", " "),
    **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm "},
    **{"π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "°": r"^\circ ", "∅": r"\emptyset "},
    **{"≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "∈": r"\in "},
    **{"∪": r"\cup ", "∩": r"\cap ", "⟨": r"\langle ", "⟩": r"\rangle ", "％": "%"},
    **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}"},
    **{"¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "²": "^{2}", "³": "^{3}"},
    **{"₀": "_0", "₁": "_1", "₂": "_2", "₃": "_3", "ⁿ": "^{n}", "⁄": "/", "∛": r"\sqrt[3]"},
    **{"“": '"', "”": '"', "‘": "'", "’": "'", "，": ",", "（": "(", "）": ")", "。": "."},
    **{"｛": "{", "｝": "}", "、": ",", "或": " or ", "和": " and "},
}

_TABLE = str.maketrans(_CHARACTERS)

_TEXT_COMMAND = (
    r"\\(?:text(?:bf|rm|it|sf|tt|normal|up|sc)?|mbox|hbox|math(?:rm|bf|it|sf|tt|normal)"
    r"|operatorname\*?|emph|bold|boldsymbol|pmb)\s?"
)

TEXT = re.compile(_TEXT_COMMAND + r"\{([^{}]*)\}")

_REPLACED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"√\s?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s?\{", r"\\sqrt{"),
        (r"√\s?([0-9]+|[a-zA-Z])", r"\\sqrt{\1}"),
        # thousands separators that cannot separate a list: 1{,}234 1,\!234 1\,234 1 234
        (r"(?<=[0-9])\s?(?:\{\s?,\s?\}|,\\!|\{,\\!\}|\\!,|\\,)\s?(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<![0-9.,/])([0-9]{1,3}(?: [0-9]{3})+)(?![0-9/,])", lambda m: m[1].replace(" ", "")),
        (r"(\\\\)|\\[!,;:> ]|\\q?quad(?![a-z])|~|\\(?:display|text|script)style(?![a-z])", r"\1 "),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?=[\W_])\s?\.?", ""),
        (r"\\(?:left|right)(?=\\)", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s?([0-9a-zA-Z])\s?([0-9a-zA-Z])", r"\\frac{\1}{\2}"),
        (r"\\frac\s?([0-9a-zA-Z])\s?\{", r"\\frac{\1}{"),
        (r"\\frac\s?(\{[^{}]*\})\s?([0-9a-zA-Z])", r"\\frac\1{\2}"),
        (r"\\frac\s?(\{[^{}]*\})\s?\{", r"\\frac\1{"),
        (r"\\sqrt\s?([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\%", "%"),
        (r"\\?\$", ""),
        (r"\^\s?\{?\s?\\(?:circ|degree)(?![a-z])\s?\}?|\\degrees?(?![a-z])", r"^\\circ "),
        (r"\\varnothing(?![a-z])|\\\{\s?\\\}", r"\\emptyset "),
        (r"\\lbrace(?![a-z])", r"\\{"),
        (r"\\rbrace(?![a-z])", r"\\}"),
        (r"\\[lr]angle(?![a-z])", lambda found: "(" if found[0][1] == "l" else ")"),
        (r"\\leqslant(?![a-z])|\\le(?![a-z])|<=", r"\\leq "),
        (r"\\geqslant(?![a-z])|\\ge(?![a-z])|>=", r"\\geq "),
        (r"\\ne(?![a-z])|!=", r"\\neq "),
        (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\+\s?\\infty", r"\\infty"),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}"),
        (_TEXT_COMMAND + r"\{\s?(and|or|,)(\s[^{}]*)?\}", r" \1 \2"),
        # 2,000\pi, where no bracket can make it a pair
        (
            r"^-?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?=\s?(?:\\(?:pi|sqrt|text|mbox)|[a-zA-Z]))",
            lambda found: found[0].replace(",", ""),
        ),
        # plain text of computer algebra: sin(x), x**2, e^(-8*x)
        (
            r"(?<![a-zA-Z\\])(arcsin|arccos|arctan|sin|cos|tan|sec|csc|cot|ln|log|exp)(?=\s?\()",
            r"\\\1",
        ),
        (r"\*\*", "^"),
        (r"\^\s?\(([^(){}]*)\)", r"^{\1}"),
        (r"\s+", " "),
    )
]

_WRAPPERS = [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`")]

_WRAPPERS += [('"', '"'), ("'", "'")]

_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox)\s?\{(.*)\}", re.DOTALL)

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")  # "1 1/2" is not "11/2"

_SINGLE = re.compile(r"([\^_])\{(\w)\}")

KEPT_CHARS = 200  # the longest text that a cache keeps: longer ones would fill the memory


def tidy(text: str) -> str:
    """The answer in normal form, without delimiters, dollar signs or a final full stop."""
    return _known(text) if len(text) <= KEPT_CHARS else _tidy(text)


def _tidy(text: str) -> str:
    text = _unwrapped(text.strip())
    text = text.translate(_TABLE)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".,;:").strip()


_known = functools.lru_cache(maxsize=16_384)(_tidy)


def _unwrapped(text: str) -> str:
    changed = True
    while changed:
        changed = False
        if (box := _WHOLE_BOX.fullmatch(text)) and balanced(box[1]):
            text, changed = box[1].strip(), True
        for left, right in _WRAPPERS:
            inner = text[len(left) : -len(right)]
            if inner and text.startswith(left) and text.endswith(right) and left not in inner:
                text, changed = inner.strip(), True
    return text


def balanced(text: str) -> bool:
    """Whether all braces are balanced."""
    depth = 0
    for token in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth < 0:
            return False
    return depth == 0


def plain(text: str) -> str:
    r"""The tidy text with `\text{east}` as `east`."""
    return re.sub(r"\s+", " ", TEXT.sub(r" \1 ", text)).strip()


def squashed(text: str) -> str:
    """The tidy text without spaces and needless braces; equal results mean equal answers."""
    return _SINGLE.sub(r"\1\2", _SPACE.sub("", plain(text)))


def whole_text(text: str) -> bool:
    r"""Whether the tidy text is one `\text{...}`."""
    return bool(TEXT.fullmatch(text))
