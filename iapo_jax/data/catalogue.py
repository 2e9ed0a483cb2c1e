r"""The datasets with a short name, and the specs that name a dataset on the command line.

| name | hub | splits | answers | changes |
|---|---|---|---|---|
| gsm8k | openai/gsm8k, main | train, test | integer | gold after `####`, no commas |
| math-500 | HuggingFaceH4/MATH-500 | test | latex | nothing |
| dapo-math-17k | BytedTsinghua-SIA/DAPO-Math-17k | train | integer | see below |
| aime-2024 | HuggingFaceH4/aime_2024 | test | integer | 073 is 73 |
| aime-2025 | math-ai/aime25 | test | integer | `336^\circ` is 336 |
| amc-2023 | math-ai/amc23 | test | integer | 27.0 is 27 |
| commonsense-qa | tau/commonsense_qa | train, validation | choice | choices under the question |
| arithmetic | (generated) | train, select, test | integer | nothing |

DAPO repeats its problems (in the hub's version a hundred times), wraps them in instructions,
and has damaged texts. Its recipe removes the instructions, repairs damage that has only one
explanation (`questions.repair`), keeps each question once, and leaves out questions with two
answers. `:first N` and `:last M` count the rows that remain.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from iapo_jax.config.sections import PromptSection
from iapo_jax.data import arithmetic
from iapo_jax.errors import UserError


class DataSet(NamedTuple):
    """The recipe of a named dataset: where its rows are, and how to read a row."""

    hub: str  # name on the hub; empty = generated
    splits: dict[str, str]  # our name of a split -> the hub's
    default: str  # the split if none is named
    kind: str  # of the answers: integer, latex or choice
    prompt: PromptSection  # the dataset's own
    read: Callable[[dict], tuple[str, str]]  # row -> question, gold; raises ValueError
    subset: str | None = None  # on the hub
    repeats: bool = False  # questions occur more than once, and some are damaged
    refused: dict[str, str] = {}  # split -> the reason why it cannot be scored


# ----------------------------------------------------------------------- reading a row


def _column(row: dict, *names: str) -> str:
    for name in names:
        value = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value not in (None, "", []):
            return value if isinstance(value, list) else str(value)
    raise ValueError(missing_column(row, *names))


def missing_column(row: dict, *names: str) -> str:
    """Why a row has no value in any of these columns."""
    empty = [name for name in names if name in row]
    if empty:
        return f"the column `{empty[0]}` is empty"
    columns = ", ".join(map(str, row)) or "none"
    return f"there is no column {one_of(f'`{name}`' for name in names)}; the columns are {columns}"


def _read_gsm8k(row: dict) -> tuple[str, str]:
    worked = _column(row, "answer")
    return _column(row, "question"), worked.rpartition("####")[2].strip()


def _read_problem(row: dict) -> tuple[str, str]:
    question = _column(row, "problem", "question", "Problem")
    return question, _column(row, "answer", "expected_answer", "Answer").strip()


_DAPO_BEFORE = re.compile(
    r"\s*Solve the following math problem step by step\. The last line of your response should be "
    r"of the form Answer: .{0,40}? where \$Answer is the answer to the problem\.\s*"
)

_DAPO_AFTER = re.compile(r'\s*Remember to put your answer on its own line after "Answer:"\.?\s*\Z')


def _read_dapo(row: dict) -> tuple[str, str]:
    prompt = _column(row, "prompt")
    if isinstance(prompt, list):
        contents = [m.get("content") for m in prompt if isinstance(m, dict)]
        if len(contents) != 1 or not isinstance(contents[0], str):
            raise ValueError(f"`prompt` is {prompt!r:.60}; expected a single chat message")
        prompt = contents[0]
    start = _DAPO_BEFORE.match(prompt)
    question = _DAPO_AFTER.sub("", prompt[start.end() if start else 0 :]).strip()
    return question, _column(row, "reward_model.ground_truth", "solution", "answer").strip()


def _read_choices(row: dict) -> tuple[str, str]:
    """The hub's columns, or the nested objects of the original JSONL."""
    nested = row.get("question")
    stem = _column(row, "question.stem") if isinstance(nested, dict) else _column(row, "question")
    choices = nested.get("choices") if isinstance(nested, dict) else row.get("choices")
    if isinstance(choices, dict):
        pairs = list(zip(choices.get("label", ()), choices.get("text", ()), strict=False))
    else:
        pairs = [(choice.get("label"), choice.get("text")) for choice in choices or ()]
    gold = _column(row, "answerKey").strip().upper()
    if gold not in [label for label, _ in pairs]:
        raise ValueError(f"`answerKey` is {gold!r}; expected the label of one of {pairs!r:.80}")
    return "\n".join([stem.strip(), *(f"{label}. {text}" for label, text in pairs)]), gold


# -------------------------------------------------------------------------- the datasets

_INTEGER = PromptSection(
    system="r1", instruction="Reason step by step. The answer must be a single integer, in digits."
)

_LATEX = PromptSection(
    system="r1",
    instruction="Reason step by step. The answer must be in LaTeX, in its simplest exact form.",
)

_CHOICE = PromptSection(
    system="r1",
    instruction="\nReason step by step. The answer must be the letter of the best choice alone.",
)

DATA_SETS = {
    "gsm8k": DataSet(
        hub="openai/gsm8k",
        subset="main",
        splits={"train": "train", "test": "test"},
        default="test",
        kind="integer",
        prompt=_INTEGER,
        read=_read_gsm8k,
    ),
    "math-500": DataSet(
        hub="HuggingFaceH4/MATH-500",
        splits={"test": "test"},
        default="test",
        kind="latex",
        prompt=_LATEX,
        read=_read_problem,
    ),
    "dapo-math-17k": DataSet(
        hub="BytedTsinghua-SIA/DAPO-Math-17k",
        splits={"train": "train"},
        default="train",
        kind="integer",
        prompt=_INTEGER,
        read=_read_dapo,
        repeats=True,
    ),
    "aime-2024": DataSet(
        hub="HuggingFaceH4/aime_2024",
        splits={"test": "train"},  # the hub's name for this test set
        default="test",
        kind="integer",
        prompt=_INTEGER,
        read=_read_problem,
    ),
    "aime-2025": DataSet(
        hub="math-ai/aime25",
        splits={"test": "test"},
        default="test",
        kind="integer",
        prompt=_INTEGER,
        read=_read_problem,
    ),
    "amc-2023": DataSet(
        hub="math-ai/amc23",
        splits={"test": "test"},
        default="test",
        kind="integer",
        prompt=_INTEGER,
        read=_read_problem,
    ),
    "commonsense-qa": DataSet(
        hub="tau/commonsense_qa",
        splits={"train": "train", "validation": "validation"},
        default="validation",
        kind="choice",
        prompt=_CHOICE,
        read=_read_choices,
        refused={"test": "was published without answers"},
    ),
    "arithmetic": DataSet(
        hub="",
        splits={name: name for name in arithmetic.SPLITS},
        default="test",
        kind="integer",
        prompt=PromptSection(system="", instruction=""),
        read=_read_problem,
    ),
}


def one_of(names: Iterable[str]) -> str:
    """`a`, `a or b`, or `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def check_split(name: str, split: str, field: str) -> None:
    """Checks that a named dataset has this split.

    Raises:
      UserError: listing the splits.
    """
    known, refused = DATA_SETS[name].splits, DATA_SETS[name].refused
    if split not in known:
        expected = f"expected {one_of(known)}"
        if split in refused:
            raise UserError(
                f"{field}: split {split!r} of {name} cannot be used: it {refused[split]}; "
                f"{expected}"
            )
        raise UserError(f"{field}: {name} has no split {split!r}; {expected}")


def read_integer(text: str) -> str | None:
    r"""The plain form of an integer answer such as `1,234`, `336^\circ`, `27.0`, `073`, `$5$`.

    None if the text is not an integer.
    """
    plain = re.sub(r"\^?\{?\\circ\}?|[$\s]|\\[,!;]|°", "", text)
    match = re.fullmatch(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)(?:\.0+)?", plain)
    if not match:
        return None
    return str(int(match[1] + match[2].replace(",", "")))


# --------------------------------------------------------------------------- a spec


class DataSpec(NamedTuple):
    """The parts of `NAME[=PATH][:SPLIT][:first N][:last M]`."""

    text: str  # as written
    name: str  # in DATA_SETS; empty = a file, a directory or a hub name without a recipe
    source: str  # file, directory or hub name; empty = the recipe's own
    split: str | None  # None = not named
    first: int  # 0 = all
    last: int = 0  # of the first ones; 0 = all


_FORMS = (
    "NAME, NAME=PATH, a file or a hub name, optionally followed by :SPLIT, :first N and :last M "
    "(:last M is applied after :first N)"
)


def parse_spec(text: str, field: str = "--dataset") -> DataSpec:
    """Parses `NAME[:SPLIT][:first N][:last M]`, `NAME=PATH...`, `FILE...` or `HUB/NAME...`.

    A short name takes precedence over a file of that name, which is written `./NAME`. A text that
    is an existing path means that path, whatever characters it has.

    Raises:
      UserError: naming the field, what was found and the nearest short name.
    """
    text = text.strip()
    head, first, last = text, 0, 0
    if not _exists(text):
        head, last = _split_count(text, "last", field)
        head, first = _split_count(head, "first", field)
    head, split = _split_split(head, field)
    match = re.fullmatch(r"([\w.-]+)=(.*)", head)
    if match and not _exists(head):
        name, source = match[1], match[2]
        if name not in DATA_SETS:
            raise UserError(f"{field}: {text!r} has no known dataset before `=`{_near(name)}")
        if not source:
            raise UserError(f"{field}: {text!r} has no path after `=`; expected {name}=PATH")
    elif head in DATA_SETS:
        name, source = head, ""
    else:
        name, source = "", head
        if not head:
            raise UserError(f"{field} is {text!r}; expected {_FORMS}")
        bare = "/" not in head and not Path(head).suffix and not _exists(head)
        if bare and _nearest(head):
            raise UserError(f"{field}: {text!r} is not a dataset, file or directory{_near(head)}")
    if name and split is not None:
        check_split(name, split, field)
    return DataSpec(text, name, source, split, first, last)


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).expanduser().exists()
    except OSError:  # too long for a file name
        return False


def _nearest(name: str) -> str | None:
    starts = [known for known in DATA_SETS if len(name) > 2 and known.startswith(name.lower())]
    return next(iter(starts or difflib.get_close_matches(name.lower(), DATA_SETS, n=1)), None)


def _near(name: str) -> str:
    near = _nearest(name)
    return f"; did you mean {near}?" if near else f"; expected one of {', '.join(DATA_SETS)}"


def _split_count(text: str, word: str, field: str) -> tuple[str, int]:
    match = re.fullmatch(rf"(.*):\s*{word}\b(.*)", text)
    if not match:
        return text, 0
    count = match[2].strip()
    if not re.fullmatch(r"[1-9]\d*", count):
        raise UserError(
            f"{field}: {text!r} ends in {f'{word} {count}'.strip()!r}; expected `:{word} N` with a "
            "positive integer N"
        )
    return match[1], int(count)


def _split_split(head: str, field: str) -> tuple[str, str | None]:
    before, colon, split = head.rpartition(":")
    if not colon or _exists(head) or "/" in split:
        return head, None
    if not re.fullmatch(r"[\w.-]+", split):
        raise UserError(
            f"{field}: {split!r} in {head!r} is not the name of a split; expected {_FORMS}"
        )
    return before, split
