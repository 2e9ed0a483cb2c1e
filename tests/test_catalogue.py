"""Datasets by short names: specs, published files, the hub's layouts, cleaning."""

import itertools
import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iapo_jax.config.sections import DataSection, PromptSection
from iapo_jax.config.train import EvalSection
from iapo_jax.data import arithmetic, catalogue, loading, questions
from iapo_jax.data import prompts as chat_prompts
from iapo_jax.data.catalogue import DATA_SETS, DataSpec, parse_spec, read_integer
from iapo_jax.errors import UserError


def load(text, **more):
    return loading.load_set(parse_spec(text), **more)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------- specs


@pytest.mark.parametrize(
    "text, name, source, split, first",
    [
        ("gsm8k", "gsm8k", "", None, 0),
        ("gsm8k:train", "gsm8k", "", "train", 0),
        ("arithmetic:test:first 512", "arithmetic", "", "test", 512),
        ("math-500:first 7", "math-500", "", None, 7),
        ("gsm8k=my/rows.jsonl", "gsm8k", "my/rows.jsonl", None, 0),
        ("gsm8k=my/rows.jsonl:train: first 9", "gsm8k", "my/rows.jsonl", "train", 9),
        ("gsm8k=other/edition:test", "gsm8k", "other/edition", "test", 0),
        ("rows.jsonl", "", "rows.jsonl", None, 0),
        ("some/dir/rows.parquet:test:first 3", "", "some/dir/rows.parquet", "test", 3),
        ("openai/gsm8k:test", "", "openai/gsm8k", "test", 0),
        ("./gsm8k", "", "./gsm8k", None, 0),
        ("a/b=c/rows.jsonl", "", "a/b=c/rows.jsonl", None, 0),
        ("squad", "", "squad", None, 0),
    ],
)
def test_a_spec(text, name, source, split, first):
    assert parse_spec(text) == DataSpec(text, name, source, split, first)


@pytest.mark.parametrize(
    "text, split, first, last",
    [
        ("math-500:last 100", None, 0, 100),
        ("gsm8k:train:first 7000:last 1400", "train", 7000, 1400),
    ],
)
def test_the_last_of_the_first_rows(text, split, first, last):
    assert parse_spec(text) == DataSpec(text, text.partition(":")[0], "", split, first, last)


def test_an_existing_path_is_that_path(tmp_path):
    odd = tmp_path / "rows:train:first 2"
    odd.mkdir()
    assert parse_spec(str(odd)) == DataSpec(str(odd), "", str(odd), None, 0)


def test_a_name_goes_before_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "mine").mkdir()
    assert parse_spec("gsm8k").name == "gsm8k" and not parse_spec("./gsm8k").name
    assert parse_spec("mine:test") == DataSpec("mine:test", "", "mine", "test", 0)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("gsm8", "'gsm8' is not a dataset, file or directory; did you mean gsm8k?"),
        ("MATH500", "'MATH500' is not a dataset, file or directory; did you mean math-500?"),
        ("dapo", "'dapo' is not a dataset, file or directory; did you mean dapo-math-17k?"),
        ("aime2024=rows.jsonl", "has no known dataset before `=`; did you mean aime-2024?"),
        (
            "qqq=rows.jsonl",
            "has no known dataset before `=`; expected one of gsm8k, math-500, dapo-",
        ),
        ("gsm8k=", "'gsm8k=' has no path after `=`; expected gsm8k=PATH"),
        ("gsm8k:dev", "gsm8k has no split 'dev'; expected train or test"),
        ("gsm8k=rows.jsonl:dev", "gsm8k has no split 'dev'; expected train or test"),
        ("math-500:train", "math-500 has no split 'train'; expected test"),
        ("aime-2024:train", "aime-2024 has no split 'train'; expected test"),
        (
            "commonsense-qa:test",
            "split 'test' of commonsense-qa cannot be used: it was published without answers; "
            "expected train or validation",
        ),
        ("arithmetic:dev", "expected train, select or test"),
        ("gsm8k:first 0", "ends in 'first 0'; expected `:first N` with a positive integer N"),
        ("gsm8k:test:first", "ends in 'first'; expected `:first N`"),
        ("gsm8k:first -3", "ends in 'first -3'"),
        ("gsm8k:first 2.5", "ends in 'first 2.5'"),
        ("gsm8k:last", "ends in 'last'; expected `:last N`"),
        ("gsm8k:last 2:first 5", "ends in 'last 2:first 5'; expected `:last N`"),
        ("gsm8k:two words", "'two words' in 'gsm8k:two words' is not the name of a split"),
        ("gsm8k:", "'' in 'gsm8k:' is not the name of a split"),
        ("", "eval.dataset is ''; expected NAME, NAME=PATH"),
    ],
)
def test_a_wrong_spec_is_one_sentence(text, sentence):
    with pytest.raises(UserError) as caught:
        parse_spec(text, "eval.dataset")
    message = str(caught.value)
    assert message.startswith("eval.dataset") and sentence in message and "\n" not in message


@pytest.mark.parametrize(
    "text, integer",
    [
        ("72", "72"),
        ("1,234", "1234"),
        ("-1,234,567", "-1234567"),
        (r"336^\circ", "336"),
        (r"336^{\circ}", "336"),
        ("27.0", "27"),
        ("-1.0", "-1"),
        ("073", "73"),
        ("000", "0"),
        ("$ 5 $", "5"),
        ("1{,}000", None),
        ("27.5", None),
        ("1,23", None),
        (r"\frac{1}{2}", None),
        ("3 or 4", None),
        ("", None),
    ],
)
def test_read_integer(text, integer):
    assert read_integer(text) == integer


# ------------------------------------------------------------------------- published files


@pytest.mark.parametrize(
    "spec, count, kind, split",
    [
        ("gsm8k={}/gsm8k/train.jsonl", 7_473, "integer", "train"),
        ("gsm8k={}/gsm8k:test", 1_319, "integer", "test"),
        ("math-500={}/math500/test.jsonl", 500, "latex", "test"),
        ("aime-2024={}/aime/aime24_nemo_skills.jsonl", 30, "integer", "test"),
        ("aime-2024={}/aime/aime24_qwen25math.jsonl", 30, "integer", "test"),
        ("aime-2025={}/aime/aime25_DEER.jsonl", 30, "integer", "test"),
        ("aime-2025={}/aime/aime25_nemo_skills.jsonl", 30, "integer", "test"),
        ("amc-2023={}/amc23/test.jsonl", 40, "integer", "test"),
    ],
)
def test_published_editions(shared_data, spec, count, kind, split):
    found = load(spec.format(shared_data))
    assert (len(found.rows), found.kind, found.split) == (count, kind, split)
    assert found.name == spec.partition("=")[0]
    assert {row.columns["kind"] for row in found.rows} == {kind}
    assert all(isinstance(row.question, str) and row.question for row in found.rows)
    assert len({questions.normalize(row.question) for row in found.rows}) == count
    if kind == "integer":
        assert all(str(int(row.answer)) == row.answer for row in found.rows)


def test_gsm8k_golds_lose_their_commas(shared_data):
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    after = [json.loads(line)["answer"].split("####")[1].strip() for line in lines]
    found = load(f"gsm8k={shared_data}/gsm8k/test.jsonl")
    assert [row.answer for row in found.rows] == [gold.replace(",", "") for gold in after]
    commas = sum("," in gold for gold in after)
    assert commas > 0
    assert found.notes == [f"{commas} answers rewritten; the first was 2,125 and is now 2125"]


@pytest.mark.parametrize(
    "name, one, other",
    [
        ("aime-2024", "aime24_nemo_skills", "aime24_qwen25math"),
        ("aime-2025", "aime25_nemo_skills", "aime25_DEER"),
    ],
)
def test_two_sources_of_a_contest_agree(shared_data, name, one, other):
    """Different orders, 073 and 336^\\circ: the same thirty integers, question for question."""
    sets = [load(f"{name}={shared_data}/aime/{file}.jsonl") for file in (one, other)]
    golds = [
        {questions.normalize(row.question): row.answer for row in found.rows} for found in sets
    ]
    shared = golds[0].keys() & golds[1].keys()
    assert len(shared) >= 10
    assert all(golds[0][key] == golds[1][key] for key in shared)
    assert sorted(golds[0].values()) == sorted(golds[1].values())


def test_math_500_as_published(shared_data):
    lines = (shared_data / "math500" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    raw = [json.loads(line) for line in lines]
    found = load(f"math-500={shared_data}/math500/test.jsonl")
    assert [(row.question, row.answer) for row in found.rows] == [
        (row["problem"], row["answer"]) for row in raw
    ]
    assert found.notes == []


@pytest.fixture(scope="module")
def dapo(shared_data):
    return load(f"dapo-math-17k={shared_data}/dapo/dapo_math_17k.parquet")


@pytest.mark.nightly
def test_dapo_as_published(dapo, shared_data):
    path = str(shared_data / "dapo" / "dapo_math_17k.parquet")
    raw = [row["prompt"][0]["content"] for row in datasets.Dataset.from_parquet(path)]
    assert len(raw) == 17_917
    keys = [questions.normalize(row.question) for row in dapo.rows]
    assert len(keys) == len(set(keys)) == 16_455 < len(set(raw))
    assert not any(set("\f\v\b\a\x14\x88") & set(row.question) for row in dapo.rows)
    # The count of the data's README: 480 of the first 7,000, one of them before a whole \frac.
    assert sum("\f" in text for text in raw[:7_000]) == 480
    assert all(questions.repair(text) is not None for text in raw[:7_000])
    eaten = [text for text in raw if "\frac" in text]
    assert len(eaten) > 500
    repaired = [questions.repair(text) for text in eaten]
    assert all(
        new.count(r"\frac") == old.count("\frac") + old.count(r"\frac")
        for old, new in zip(eaten, repaired, strict=True)
        if new is not None
    )
    assert dapo.notes[0].startswith("17,917 rows read: 642 rows repaired (such as a form feed in")
    assert dapo.notes[0].endswith(
        "9 rows left out because of damage with no certain repair; 1,409 duplicates left out; "
        "21 questions left out because of two answers (44 rows); 16,455 remain"
    )
    assert 9 + 1_409 + 44 + 16_455 == 17_917


@pytest.mark.nightly
def test_real_overlaps(dapo, shared_data):
    """All pairs of these sets that share a question; each was checked by hand."""

    def ask(text):
        return [row.question for row in load(text.format(shared_data)).rows]

    training = [row.question for row in dapo.rows]
    math, amc = (ask("math-500={}/math500/test.jsonl"), ask("amc-2023={}/amc23/test.jsonl"))
    assert len(questions.overlap(training, math)) == 7
    assert len(questions.overlap(training, amc)) == 13
    for held in (math, amc):
        out = questions.seen_in(held, training)
        left = [text for i, text in enumerate(training) if i not in set(out)]
        assert 0 < len(out) < 40 and questions.overlap(left, held) == []
    gsm8k = ask("gsm8k={}/gsm8k:train")
    tests = math + amc + ask("gsm8k={}/gsm8k:test") + ask("aime-2025={}/aime/aime25_DEER.jsonl")
    assert questions.overlap(gsm8k, tests) == []
    with pytest.raises(UserError, match="math-500 shares 7 of its 500 questions with the training"):
        questions.check_overlap(training, math, "dapo-math-17k", "math-500")


# ------------------------------------------------------------------------ the hub's layouts

BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of "
    "the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'
CHOICES = {"label": ["A", "B", "C"], "text": ["bed", "river", "sky"]}

HUB = [
    (
        "gsm8k:train",
        ("openai/gsm8k", "main", "train"),
        {"question": "How many?", "answer": "It is <<2*600=1200>>1200.\n#### 1,200"},
        ("How many?", "1200", {"kind": "integer"}),
    ),
    (
        "math-500",
        ("HuggingFaceH4/MATH-500", None, "test"),
        {
            **{"problem": "What is $x$?", "solution": "So", "answer": r"\frac{1}{2}"},
            **{"subject": "Algebra", "level": 2, "unique_id": "test/1.json"},
        },
        (
            "What is $x$?",
            r"\frac{1}{2}",
            {
                **{"solution": "So", "subject": "Algebra", "level": 2},
                **{"unique_id": "test/1.json", "kind": "latex"},
            },
        ),
    ),
    (
        "dapo-math-17k",
        ("BytedTsinghua-SIA/DAPO-Math-17k", None, "train"),
        {
            "data_source": "math_dapo",
            "prompt": [{"content": f"{BEFORE}Find $\frac{{1}}{{2}} + x$.{AFTER}", "role": "user"}],
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
        },
        (
            r"Find $\frac{1}{2} + x$.",
            "34",
            {
                "data_source": "math_dapo",
                "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
                "kind": "integer",
            },
        ),
    ),
    (
        "aime-2024",
        ("HuggingFaceH4/aime_2024", None, "train"),
        {"id": 60, "problem": "Walk.", "solution": "So", "answer": "073", "year": "2024"},
        ("Walk.", "73", {"id": 60, "solution": "So", "year": "2024", "kind": "integer"}),
    ),
    (
        "aime-2025",
        ("math-ai/aime25", None, "test"),
        {"problem": "Find the angle.", "answer": r"336^\circ", "id": "4"},
        ("Find the angle.", "336", {"id": "4", "kind": "integer"}),
    ),
    (
        "amc-2023",
        ("math-ai/amc23", None, "test"),
        {"id": 0, "question": "Cities.", "answer": 27.0, "url": "u"},
        ("Cities.", "27", {"id": 0, "url": "u", "kind": "integer"}),
    ),
    (
        "commonsense-qa",
        ("tau/commonsense_qa", None, "validation"),
        {"id": "7", "question": "Where is a bank?", "choices": CHOICES, "answerKey": "B"},
        (
            "Where is a bank?\nA. bed\nB. river\nC. sky",
            "B",
            {"id": "7", "choices": CHOICES, "kind": "choice"},
        ),
    ),
]


@pytest.mark.parametrize("spec, asked, row, expected", HUB, ids=[case[0] for case in HUB])
def test_the_rows_that_are_requested_from_the_hub(monkeypatch, spec, asked, row, expected):
    calls = []

    def load_dataset(name, subset=None, split=None):
        calls.append((name, subset, split))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load(spec)
    assert calls == [asked]
    assert found.rows == [loading.Row(*expected)]
    assert (found.name, found.kind) == (spec.partition(":")[0], expected[2]["kind"])


def test_every_name_is_covered():
    assert {case[0].partition(":")[0] for case in HUB} | {"arithmetic"} == set(DATA_SETS)


def test_commonsense_qa_in_its_original_nesting(tmp_path):
    choices = [{"label": "A", "text": "bed"}, {"label": "B", "text": "river"}]
    row = {"answerKey": "B", "id": "7", "question": {"stem": "A bank?", "choices": choices}}
    found = load(f"commonsense-qa={write(tmp_path / 'dev_rand_split.jsonl', [row])}")
    assert found.rows == [
        loading.Row("A bank?\nA. bed\nB. river", "B", {"id": "7", "kind": "choice"})
    ]


@pytest.mark.parametrize(
    "name, row, sentence",
    [
        (
            "math-500",
            {"text": "x"},
            "there is no column `problem`, `question` or `Problem`; the columns are text",
        ),
        ("math-500", {"problem": "x"}, "row 2: there is no column `answer`, `expected_answer`"),
        ("gsm8k", {"question": "x", "answer": "#### two"}, "answer is 'two'; expected an integer"),
        ("amc-2023", {"question": "x", "answer": 27.5}, "answer is '27.5'; expected an integer"),
        (
            "commonsense-qa",
            {"question": "x", "choices": CHOICES, "answerKey": "E"},
            "`answerKey` is 'E'; expected the label of one of",
        ),
        (
            "commonsense-qa",
            {"question": "x", "choices": CHOICES, "answerKey": ""},
            "row 2: the column `answerKey` is empty",
        ),
        (
            "dapo-math-17k",
            {"prompt": [{"role": "user", "content": "x"}] * 2},
            "expected a single chat message",
        ),
    ],
)
def test_a_bad_row_of_a_named_set(tmp_path, name, row, sentence):
    good = {"question": "q", "problem": "q", "answer": "1", "prompt": "q", "choices": CHOICES}
    path = write(tmp_path / "rows.jsonl", [{**good, "answerKey": "A"}, row])
    with pytest.raises(UserError) as caught:
        load(f"{name}={path}")
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"{path}, row 2: ")


def test_dapo_cleaning_in_small(tmp_path):
    """Everything that can happen to a row, once each, and the sentence that counts the cases."""
    rows = [
        ("Find $x + 1$.", "1"),
        (BEFORE + "Find $x+1$" + AFTER, "1"),  # the same with different markup
        ("Find $x + 1$.", "1"),  # the same
        ("Find $x - 1$.", "2"),  # another
        ("Take \frac{1}{2}.", "3"),  # repaired
        (r"Take \frac12.", "3"),  # so it equals the one above
        ("Take \x01 this.", "4"),  # beyond repair
        ("Two golds", "5"),
        ("two  golds?", "6"),
        ("No integer", "a half"),
        ("With a comma", "1,000"),
    ]
    path = write(
        tmp_path / "rows.jsonl",
        [{"prompt": text, "reward_model": {"ground_truth": gold}} for text, gold in rows],
    )
    found = load(f"dapo-math-17k={path}:train")
    assert [(row.question, row.answer) for row in found.rows] == [
        ("Find $x + 1$.", "1"),
        ("Find $x - 1$.", "2"),
        (r"Take \frac{1}{2}.", "3"),
        ("With a comma", "1000"),
    ]
    assert found.notes == [
        r"11 rows read: 1 row repaired (such as a form feed in place of the \f of \frac); "
        "1 row left out because of damage with no certain repair; 1 row left out because the "
        "answer is not an integer; 3 duplicates left out; 1 question left out because of two "
        "answers (2 rows); 4 remain",
        "1 answer rewritten; the first was 1,000 and is now 1000",
    ]
    # The first rows are the first of what remains.
    assert load(f"dapo-math-17k={path}:first 2").rows == found.rows[:2]
    late = load(f"dapo-math-17k={path}:first 3:last 2")
    assert late.rows == found.rows[1:3] and list(late.numbers) == list(found.numbers)[1:3]


# ----------------------------------------------------------------------- splits and sections


def test_a_file_name_states_its_split(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"question": "q", "answer": "1"}])
    assert load(f"gsm8k={path}").split == "train"
    assert load(f"gsm8k={path}", split="test").split == "train"
    assert load(f"gsm8k={tmp_path}:train").split == "train"
    with pytest.raises(UserError, match="train.jsonl is the split train, not test"):
        load(f"gsm8k={path}:test")


def test_a_saved_copy_of_the_hubs_set(tmp_path):
    rows = datasets.Dataset.from_list([{"problem": "q", "answer": "073"}])
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "copy"))
    assert load(f"aime-2024={tmp_path / 'copy'}").rows[0].answer == "73"


def test_sections_take_names_too(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"problem": f"q{i}", "answer": "1"} for i in range(5)])
    section = EvalSection(dataset=f"math-500={path}", max_rows=3)
    found = loading.load_section(section, "eval.dataset")
    assert (len(found.rows), found.split, found.kind) == (3, "test", "latex")
    assert len(loading.load_section(EvalSection(dataset=f"math-500={path}:first 2")).rows) == 2
    found = loading.load_section(DataSection(dataset="arithmetic", split="select"))
    assert (len(found.rows), found.split) == (512, "select")
    found = loading.load_section(DataSection(dataset="arithmetic:test"))
    assert (len(found.rows), found.split) == (1024, "test")
    with pytest.raises(UserError, match="data.dataset: math-500 has no split 'train'"):
        loading.load_section(DataSection(dataset="math-500"))
    with pytest.raises(
        UserError, match="data.subset is 'socratic', but gsm8k has only the subset 'main'"
    ):
        loading.load_section(DataSection(dataset="gsm8k", subset="socratic"))


def test_a_plain_file_has_no_recipe(tmp_path):
    rows = [{"question": "1+1", "answer": "2", "level": 1}, {"question": "1+2", "answer": "3"}]
    path = write(tmp_path / "mine.jsonl", rows)
    found = loading.load_section(DataSection(dataset=str(path)))
    assert found.rows == [loading.Row("1+1", "2", {"level": 1}), loading.Row("1+2", "3", {})]
    assert (found.name, found.kind, found.prompt, found.notes) == ("mine", "", PromptSection(), [])
    assert len(load(f"{path}:first 1").rows) == 1


def test_arithmetic_is_the_file_that_its_rows_make(tmp_path):
    file = load(str(write(tmp_path / "test.jsonl", arithmetic.make_splits()["test"])))
    named = load("arithmetic:test")
    assert [row[:2] for row in named.rows] == [row[:2] for row in file.rows]
    assert load("arithmetic:test:first 512").rows == named.rows[:512]
    assert load("arithmetic:test:last 512").rows == named.rows[-512:]
    late = load(f"{file.source}:last 3")
    assert late.rows == file.rows[-3:] and list(late.numbers) == list(file.numbers)[-3:]


# --------------------------------------------------------------------------------- prompts


class Plain:
    chat_template = None


def test_a_named_set_brings_its_prompt():
    own = DATA_SETS["gsm8k"].prompt
    text = chat_prompts.render_prompt(
        Plain(), "How many?", chat_prompts.resolve_prompt(PromptSection(), own)
    )
    assert text == (
        f"{chat_prompts.R1_SYSTEM}\n\nHow many? Reason step by step. "
        "The answer must be a single integer, in digits.\n\n"
    )
    assert loading.own_prompt(DataSection(dataset="gsm8k=rows.jsonl:test")) == own
    assert loading.own_prompt(DataSection(dataset="openai/gsm8k")) == PromptSection()
    # What the user sets takes precedence, and "" counts as set.
    mine = PromptSection(system="", instruction="Digits.", example_question="1+1")
    resolved = chat_prompts.resolve_prompt(mine, own)
    assert resolved == PromptSection("", "Digits.", "1+1", None)
    assert chat_prompts.resolve_prompt(PromptSection(), PromptSection()) == PromptSection()
    choice = chat_prompts.resolve_prompt(
        PromptSection(system=""), DATA_SETS["commonsense-qa"].prompt
    )
    assert chat_prompts.render_prompt(Plain(), "A?\nA. x\nB. y", choice).startswith(
        "A?\nA. x\nB. y\nReason"
    )
    task = chat_prompts.resolve_prompt(PromptSection(), DATA_SETS["arithmetic"].prompt)
    assert chat_prompts.render_prompt(Plain(), "12+34", task) == "12+34\n\n"


def test_each_kind_has_its_instruction():
    words = {"integer": "integer", "latex": "LaTeX", "choice": "letter"}
    for name, one in DATA_SETS.items():
        assert one.default in one.splits
        if name != "arithmetic":
            assert words[one.kind] in one.prompt.instruction and one.prompt.system == "r1"


# ------------------------------------------------------------------------------- questions


@pytest.mark.parametrize(
    "group",
    [
        ["Find $x + 1$.", "find  \\(x+1\\)", "Find\n$$x\\, +\\; 1$$ ", "Find $ x+1 $"],
        ["$AC = 26$, $BD$", "$ AC=26, $ $ BD. $"],
        [r"\dfrac{1}{2}", r"\frac12", r"\tfrac{1} { 2 }"],
        [r"\sqrt{x}", r"\sqrt x"],
        [r"\left( x \right)", "(x)", r"\big(x\big)"],
        ["“It’s” 5–3", '"It\'s" 5-3', '"It\'s" 5−3'],
        ["x² ≤ 4", "$x^{2} \\le 4$", r"x^2\leq4"],
        ["the ﬁrst", "The first."],
        ["a $9$-digit number", "a 9-digit number"],
        [[{"role": "user", "content": "1+1"}], "1+1"],
    ],
)
def test_the_same_question(group):
    assert len({questions.normalize(text) for text in group}) == 1


@pytest.mark.parametrize(
    "group",
    [
        ["1+2", "1-2", "-1+2", "1 2", "12", "1*2", ".12", "1.2", "1,2"],
        ["compute 5", "compute 5!", "compute 5%", "compute -5"],
        ["x^2", "x_2", "x2", "2x", "x^{12}", "x^1 2"],
        [r"\sin x", r"\cos x", "sin x"],
        [r"\{1,2\}", "(1,2)", "[1,2]"],
        ["z^4+z^2", "z^4-z^2"],
        ["a b", "ab"],
    ],
)
def test_other_questions(group):
    for one, other in itertools.combinations(group, 2):
        assert questions.normalize(one) != questions.normalize(other), (one, other)


LONG = "How many positive perfect squares less than 2023 are divisible by 5?"


def test_overlap():
    training = ["1+2", "What is $x$?", LONG + " Give an integer.", "Why is it? Tell me."]
    assert questions.overlap(training, ["1-2", "what is x", LONG, "3", "Why is it?"]) == [1, 2]
    assert questions.overlap(training, [LONG[:-1] + " and 7?", LONG[:-4]]) == []
    assert questions.overlap([], ["1"]) == questions.overlap(["1"], []) == []
    questions.check_overlap(["1+2"], ["1-2"], "a", "b")
    with pytest.raises(UserError) as caught:
        questions.check_overlap(training, ["3", "what  is\nx"], "mine", "theirs")
    assert str(caught.value) == (
        "theirs shares 1 of its 2 questions with the training data mine, the first of them "
        "'what is x'; expected held-out problems"
    )


def test_what_training_must_leave_out():
    training = ["1+2", "What is $x$?", LONG + " Give an integer.", "Why is it? Tell me.", LONG]
    assert questions.seen_in(["1-2", "what is x", LONG, "3", "Why is it?"], training) == [1, 2, 4]
    assert questions.seen_in([LONG[:-4]], training) == questions.seen_in([], training) == []
    assert questions.seen_in(["1"], []) == []


@given(st.data())
def test_what_is_left_has_no_overlap(data):
    """Only questions that would be refused are left out."""
    words = st.sampled_from(["How many integers from 1 to 1000 are odd", "1+2", "?", ". ", " x"])
    asked = st.lists(st.lists(words, min_size=1, max_size=4).map("".join), max_size=6)
    training, evaluation = data.draw(asked), data.draw(asked)
    out = questions.seen_in(evaluation, training)
    left = [text for i, text in enumerate(training) if i not in out]
    assert questions.overlap(left, evaluation) == []
    assert all(questions.overlap([training[i]], evaluation) for i in out)


def test_overlap_against_brute_force():
    rng = np.random.default_rng(0)

    def draw(n):
        return [f"{a}+{b}" for a, b in rng.integers(0, 40, (n, 2))]

    one, other = draw(300), draw(300)
    expected = [i for i, text in enumerate(other) if any(text == known for known in one)]
    assert 0 < len(expected) < 300
    assert questions.overlap([f" ${text}$. " for text in one], other) == expected


def test_hold_out():
    asked = [f"{i}+{i + 1}" for i in range(300)]
    training, held = questions.hold_out(30, asked, seed=1)
    assert len(held) == 30 and sorted([*training, *held]) == list(range(300))
    sides = {asked[i] for i in held}
    # Another order, other spelling: the same questions.
    shuffled = [f"$ {text} $" for text in reversed(asked)]
    _, again = questions.hold_out(30, shuffled, seed=1)
    assert {shuffled[i].strip("$ ") for i in again} == sides
    # Added rows move at most as many of the others; equal questions are on one side.
    more = asked + [f"{i}-1" for i in range(5)] + asked
    _, grown = questions.hold_out(30, more, seed=1)
    found = {more[i] for i in grown}
    assert len(found) == 30 and len(sides & found) >= 25
    assert len(grown) == 30 + len(sides & found)
    assert {asked[i] for i in questions.hold_out(30, asked, seed=2)[1]} != sides
    assert len(questions.hold_out(0, asked, 0)[1]) == 0
    with pytest.raises(UserError, match="cannot hold out 2 of 2 distinct questions"):
        questions.hold_out(2, ["1", "1.", "2"], 0)


@pytest.mark.parametrize(
    "eaten, whole",
    [
        ("$\frac{1}{2}$ \forall x \floor", r"$\frac{1}{2}$ \forall x \floor"),
        ("$\beta$ \binom{4}{2} \boxed{1}", r"$\beta$ \binom{4}{2} \boxed{1}"),
        ("2 \times 3 \text{cm} \theta \triangle \tan(x)", None),
        ("$\neq$ \nabla f \notin", r"$\neq$ \nabla f \notin"),
        ("\right) \rho \rangle", r"\right) \rho \rangle"),
        ("\vec{a} \vert \varphi", r"\vec{a} \vert \varphi"),
        ("\angle A \alpha \approx", r"\angle A \alpha \approx"),
        ("the \x0cfirst fi\x0cve, de\x0cne, \x0cnd, di\x0bfference", None),
        ("page\n\x0c\nbreak", "page\n \nbreak"),
    ],
)
def test_repair(eaten, whole):
    if whole is None:
        whole = {
            "2": r"2 \times 3 \text{cm} \theta \triangle \tan(x)",
            "t": "the first five, define, find, difference",
        }[eaten[0]]
    assert questions.repair(eaten) == whole


@pytest.mark.parametrize(
    "text", ["$\x01$", "a \x14\\le b", "| \x0cx^2|", "\x08", "\tan x", "by \x0ctting", "\x00"]
)
def test_what_cannot_be_repaired(text):
    assert questions.repair(text) is None


@pytest.mark.parametrize(
    "text", ["a\nu = 3", "\tdraw(x)", "\n\nrho\r\n", r"\frac \times", "é 抛物线", "$$\nu$$"]
)
def test_undamaged_texts(text):
    assert questions.repair(text) == text


def test_the_table_in_the_docstring():
    for name, one in DATA_SETS.items():
        line = next(x for x in catalogue.__doc__.splitlines() if x.startswith(f"| {name} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1].split(",")[0] == (one.hub or "(generated)")
        assert cells[2].split(", ") == list(one.splits)
        assert cells[3] == one.kind
