"""What is decided without a child: numbers against Fraction, structures, and real gold answers."""

import json
import random
import re
import time
from fractions import Fraction

import pytest

from iapo_jax.answers.checker import AnswerChecker, are_correct
from iapo_jax.answers.equivalence import decide
from iapo_jax.answers.extraction import extract_answer
from iapo_jax.answers.notation import tidy
from iapo_jax.answers.quantities import quantity
from iapo_jax.answers.structures import matching, sequence

NIGHTLY = pytest.mark.nightly


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def math_500(shared_data):
    return read(shared_data / "math500" / "test.jsonl")


def spellings(value):
    """Texts that say a fraction of whole numbers."""
    over, under = value.numerator, value.denominator
    sign = "-" if over < 0 else ""
    whole, rest = divmod(abs(over), under)
    yield f"{over}/{under}"
    yield rf"{sign}\dfrac{{{abs(over)}}}{{{under}}}"
    yield rf"\frac{{{over}}}{{{under}}}"
    yield rf"${sign}\tfrac{{{2 * abs(over)}}}{{{2 * under}}}$."
    if rest:
        yield rf"{sign}{whole}\frac{{{rest}}}{{{under}}}"
        yield f"{sign}{whole} {rest}/{under}"
    if under == 1:
        yield f"{over:,}"
        yield f"{over:,}.00".replace(",", "{,}")
        yield rf"\({over} \text{{ cm}}\)"
    if 10**6 % under == 0:
        yield str(over / under)
        yield f"{over * 10**3 / under}\\times 10^{{-3}}"


def test_every_spelling_of_a_number_has_its_exact_value():
    rng = random.Random(0)
    for _ in range(200):
        value = Fraction(rng.randint(-5000, 5000), rng.choice([1, 2, 3, 8, 7, 125]))
        for text in spellings(value):
            assert quantity(tidy(text)).value == value, text


@pytest.mark.parametrize(
    "text",
    ["", "x", "12x", "12^2", "12!", "1,2345", "12,34", "1.2.3", "12 or 13", "12 is wrong", "--1"]
    + ["12 13", "1/0", "1e99999", "１２", "5 over 6", "5 squared", "2ab", "12 y", ".", "1:2"],
)
def test_other_texts_are_no_numbers(text):
    assert quantity(tidy(text)) is None


@pytest.mark.parametrize(
    "text, form, items",
    [
        ("1, 2, and 3", "bare", ("1", "2", "3")),
        (r"1 \text{ or } 2", "bare", ("1", "2")),
        (r"\left( 1, f(x, y) \right]", "(]", ("1", "f(x, y)")),
        (r"\{1\pm a, 2\}", "{}", ("1+a", "1-a", "2")),
        (r"\langle 1, 2 \rangle", "()", ("1", "2")),
        (r"(1,2) \cup \{3\}", "union", ("(1,2)", r"\{3\}")),
        (r"(1,2),(3,4)", "bare", ("(1,2)", "(3,4)")),
        (r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \\ \end{bmatrix}", "matrix 2 2", ("1", "2", "3", "4")),
        (r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}", "matrix| 2 2", ("1", "2", "3", "4")),
    ],
)
def test_structures(text, form, items):
    assert sequence(tidy(text)) == (form, items)


@pytest.mark.parametrize("text", ["12", "1,", "(1, 2", "1, 2)", "(1)(2)", ",,", "x+1", "1 and"])
def test_other_texts_are_one_thing(text):
    assert sequence(text) is None


def test_items_are_matched_once_each():
    assert matching([[True, False], [False, True]]) is True
    assert matching([[True, False], [True, False]]) is False
    assert matching([[None, False], [False, True]]) is None
    assert matching([[False, False], [None, None]]) is False


HEDGES = """12 or 13; either 12 or 13; 12, not 13; 12 (or 13); 12 = 13; 13 = 12; 13=x=12; 12 13
12 vs 13; 12 | 13; 12\\quad 13; 12\\text{ or 13}; 12\\text{ maybe}; \\text{12 or 13}; \\{12, 13\\}
x = 12 or x = 13; 12 \\lor 13; 12 \\cup 13; \\pm 12; 12 is wrong; not 12; x \\in \\{12, 13\\}"""


@pytest.fixture(scope="module")
def checker():
    """For tests that leave its processes alive."""
    with AnswerChecker(2) as found:
        yield found


def test_no_hedge_is_right(checker):
    hedges = [text.strip() for line in HEDGES.splitlines() for text in line.split(";")]
    verdicts = checker.check([(text, "12") for text in hedges])
    assert [text for text, right in zip(hedges, verdicts, strict=True) if right] == []


def test_each_published_solution_of_math_500_has_its_published_answer(math_500):
    pairs = [(extract_answer(row["solution"]), row["answer"]) for row in math_500]
    assert [pair for pair in pairs if decide(*pair) is not True] == []


@pytest.mark.parametrize(
    "respell",
    [
        lambda text: f"$${text}$$.",
        lambda text: rf"\[ {text} \]",
        lambda text: f"**{text}**",
        lambda text: rf"\boxed{{{text}}}",
        lambda text: re.sub(r"\\[dt]?frac", r"\\tfrac", text),
        lambda text: text.replace(r"\left", "").replace(r"\right", ""),
        lambda text: text.replace(r"\pi", "π").replace("-", "−"),
        lambda text: text.replace(r"\text", r"\mbox"),
        lambda text: f"{text}.0" if text.isdigit() else text,
        lambda text: f"{int(text):,}" if text.isdigit() else text,
    ],
)
def test_spelling_does_not_count(math_500, respell):
    golds = [row["answer"] for row in math_500]
    assert [gold for gold in golds if decide(respell(gold), gold) is not True] == []


def test_other_digits_are_never_right_without_algebra(math_500):
    for row in math_500:
        digits = list(re.finditer("[0-9]", row["answer"]))
        for digit in digits:
            start, end = row["answer"][: digit.start()], row["answer"][digit.end() :]
            other = f"{start}{(int(digit[0]) + 1) % 10}{end}"
            assert decide(other, row["answer"]) is not True


@pytest.mark.parametrize("part", [slice(0, 125), pytest.param(slice(125, 500), marks=NIGHTLY)])
def test_the_answer_of_another_problem_is_wrong(math_500, checker, part):
    golds = [row["answer"] for row in math_500]
    pairs = list(zip(golds, golds[7:] + golds[:7], strict=True))[part]
    verdicts = checker.check(pairs)
    same = [pair for pair, right in zip(pairs, verdicts, strict=True) if right]
    assert [pair for pair in same if pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    "name", ["aime24_nemo_skills", "aime24_qwen25math", "aime25_DEER", "aime25_nemo_skills"]
)
def test_aime_answers_are_whole_numbers(shared_data, name):
    for row in read(shared_data / "aime" / f"{name}.jsonl"):
        gold = str(row.get("answer", row.get("expected_answer")))
        number = int(re.match("[0-9]+", gold)[0])
        for text in (f"{number}", f"{number:03d}", rf"{number}^\circ"):
            assert decide(text, gold, "integer") is True
        assert decide(f"{number + 1}", gold, "integer") is False


def test_amc_answers_are_written_as_floats(shared_data):
    golds = [str(row["answer"]) for row in read(shared_data / "amc23" / "test.jsonl")]
    texts = [rf"so \boxed{{{float(gold):.0f}}}" for gold in golds]
    assert all(are_correct(texts, golds, ["integer"] * len(golds)))


@pytest.mark.parametrize(
    "form", ["#### {}", "A: {}", "The answer is ${}.", "**Answer**: {} apples"]
)
def test_gsm8k_in_the_forms_of_its_completions(shared_data, form):
    rows = [row["answer"] for row in read(shared_data / "gsm8k" / "test.jsonl")]
    works, golds = zip(*(row.split("#### ") for row in rows), strict=True)
    texts = [work + form.format(gold) for work, gold in zip(works, golds, strict=True)]
    assert all(are_correct(texts, golds))
    others = [str(int(gold.replace(",", "")) + 10) for gold in golds]
    assert not any(are_correct(texts, others))


HOSTILE = {
    "nested brackets": "(" * 900 + "1" + ")" * 900,
    "nested fractions": r"\frac{1}{" * 300 + "2" + "}" * 300,
    "nested boxes": r"\boxed{" * 250 + "1" + "}" * 250,
    "nested texts": r"\text{" * 300 + "a" + "}" * 300,
    "commas": "," * 1999,
    "minus": "-" * 1999 + "1",
    "stars": "*" * 1999,
    "spaces": "1" + " " * 1998 + "1",
    "digits": "9" * 1999,
    "words": "a " * 999,
    "powers": "1e9999",
    "items": ",".join(["x"] * 900),
    "long": "x+" * 50_000 + "1",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_answers_are_read_in_little_time(text):
    start = time.process_time()
    for gold in ("16", "x+1", text + " "):
        decide(text, gold)
        decide(gold, text)
    assert time.process_time() - start < 10.0  # milliseconds; a slow regex would take hours


ENDLESS = [r"2^{2^{2^{2^{2^{2}}}}}", "999999!", r"10^{10^{10}}", r"\binom{10^{9}}{10^{8}}"]


@pytest.mark.parametrize("endless", [ENDLESS[:2], pytest.param(ENDLESS[2:], marks=NIGHTLY)])
def test_what_has_no_end_costs_its_time_and_nothing_else(endless):
    quick = [(f"x+{n}", f"{n}+x") for n in range(12)]
    pairs = [*quick[:4], *((text, "16") for text in endless), *quick[4:]]
    with AnswerChecker(2, timeout=2.0, memory=2**31) as checker:
        verdicts = checker.check(pairs)
        assert verdicts == [True] * 4 + [False] * len(endless) + [True] * 8
        assert checker.timeouts + checker.errors == len(endless)


def test_memory_is_bounded():
    with AnswerChecker(1, timeout=5.0, memory=2**29) as checker:
        bomb = r"(1+x)^{99999} \cdot (1+y)^{99999}"
        assert checker.check([(bomb, "16"), ("x+1", "1+x")]) == [False, True]
