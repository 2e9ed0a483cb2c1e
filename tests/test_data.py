"""Rows from files, prompts through the chat template, an order that is a function of the step."""

import json
import subprocess
import sys
from decimal import Decimal

import datasets
import numpy as np
import pytest
import transformers

from iapo_jax.config.sections import DataSection, PromptSection
from iapo_jax.config.train import EvalSection, TrainConfig
from iapo_jax.data import loading, order
from iapo_jax.data import problems as data
from iapo_jax.data import prompts as chat_prompts
from iapo_jax.data.catalogue import parse_spec
from iapo_jax.errors import UserError

ROWS = [
    {"question": "1+1", "answer": "2", "level": 1},
    {"question": "2+3", "answer": "5", "level": 2},
    {"question": "4+4", "answer": "8", "level": 3},
]


class Words:
    """A tokenizer that is a list of words, with a chat template that can be read."""

    chat_template = "yes"

    def encode(self, text, add_special_tokens=False, verbose=True):
        assert add_special_tokens is False
        return [len(word) for word in text.split()]

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert tokenize is False and add_generation_prompt is True
        return "".join(f"<{m['role']}> {m['content']} " for m in messages) + "<assistant>"


class Plain(Words):
    chat_template = None


def section(path, **more):
    return DataSection(dataset=str(path), **more)


# ------------------------------------------------------------------------------------ rows


@pytest.fixture(params=["jsonl", "json", "array", "parquet", "save_to_disk", "dict on disk"])
def saved(request, tmp_path):
    """ROWS in each of the forms that a user may have."""
    table = datasets.Dataset.from_list(ROWS)
    if request.param in ("jsonl", "json"):
        path = tmp_path / f"rows.{request.param}"
        path.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS), encoding="utf-8")
    elif request.param == "array":
        path = tmp_path / "rows.json"
        path.write_text("\n " + json.dumps(ROWS, indent=1), encoding="utf-8")
    elif request.param == "parquet":
        path = tmp_path / "rows.parquet"
        table.to_parquet(str(path))
    else:
        path = tmp_path / "rows"
        whole = datasets.DatasetDict({"train": table, "test": table.select([2])})
        (table if request.param == "save_to_disk" else whole).save_to_disk(str(path))
    return path


def test_every_form_gives_the_same_rows(saved):
    assert loading.load_rows(section(saved)) == ROWS
    assert loading.load_rows(section(saved, max_rows=2)) == ROWS[:2]
    assert loading.load_rows(section(saved, max_rows=9)) == ROWS


def test_a_split_on_disk(tmp_path):
    table = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"test": table.select([2])}).save_to_disk(str(tmp_path / "rows"))
    assert loading.load_rows(section(tmp_path / "rows", split="test")) == ROWS[2:]
    with pytest.raises(UserError, match="data.dataset: cannot open .*rows"):
        loading.load_rows(section(tmp_path / "rows", split="train"))


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('{"question": "1"}\n{"question" "2"}\n', "rows.jsonl, line 2 is not JSON"),
        ('{"question": "1"}\n\n[1, 2]\n', "rows.jsonl, line 3 is [1, 2]; expected an object"),
        ('{"question": "1"}\n{"question": "caf\xe9"}\n', "rows.jsonl, line 2 is not UTF-8"),
        ('{"a": ' * 100_000, "rows.jsonl, line 1 is not JSON: maximum recursion depth"),
        ('{"a": ' + "9" * 5000 + "}", "rows.jsonl, line 1 is not JSON: Exceeds the limit"),
        ('{"answer": 1, "a": {"b": 1, "b": 2}}', "line 1 is not JSON: the key 'b' occurs twice"),
        ("", "rows.jsonl has no rows"),
        ("\n \n", "rows.jsonl has no rows"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        loading.load_rows(section(path))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('[{"question": "1"}, 5]', "rows.json, row 2 is 5; expected an object"),
        ('[{"question": "1"}', "rows.json is not JSON"),
        ("[]", "rows.json has no rows"),
    ],
)
def test_a_bad_array_is_named_with_its_row(tmp_path, text, sentence):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError) as caught:
        loading.load_rows(section(tmp_path / "rows.json"))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_skipped(tmp_path):
    for name, text in (("rows.jsonl", '{"a": 1}\n{"a": 2}'), ("rows.json", '[{"a": 1}, {"a": 2}]')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert loading.load_rows(section(tmp_path / name)) == [{"a": 1}, {"a": 2}]


def test_a_directory_of_split_files(tmp_path):
    for split, row in (("train", ROWS[0]), ("test", ROWS[1])):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    assert loading.load_rows(section(tmp_path)) == ROWS[:1]
    assert loading.load_rows(section(tmp_path, split="test")) == ROWS[1:2]
    assert loading.load_rows(section(f"{tmp_path}:test:first 1")) == ROWS[1:2]


def test_no_dataset_and_one_without_completions():
    with pytest.raises(UserError, match="data.dataset is empty; expected a file"):
        loading.load_rows(section(""))
    with pytest.raises(UserError, match="data.dataset: gsm8k has problems and answers"):
        loading.load_rows(section("gsm8k"))


@pytest.mark.parametrize("name", ["/nowhere/rows.jsonl", "rows.parquet", "/nowhere", "rows.jsonl"])
def test_a_missing_file_is_named(name):
    with pytest.raises(UserError, match=f"eval.dataset: '{name}' does not exist"):
        loading.load_rows(section(name), "eval.dataset")


def damage(whole, how):
    if how == "no parquet":
        return b"no parquet"
    if how == "truncated":
        return whole[: len(whole) // 2]
    return whole[:20] + bytes(40) + whole[60:]  # inside of a column


@pytest.mark.parametrize("how", ["no parquet", "truncated", "overwritten"])
def test_a_damaged_parquet_file_is_named(tmp_path, how, monkeypatch):
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(ROWS * 50).to_parquet(str(path))
    path.write_bytes(damage(path.read_bytes(), how))
    with pytest.raises(UserError, match="data.dataset: cannot (open|read) '.*rows.parquet'") as one:
        loading.load_rows(section(path))
    assert "\n" not in str(one.value)


def test_a_damaged_saved_data_set_is_named(tmp_path):
    datasets.Dataset.from_list(ROWS * 50).save_to_disk(str(tmp_path / "rows"))
    (file,) = (tmp_path / "rows").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match="data.dataset: cannot (open|read) '.*rows'") as caught:
        loading.load_rows(section(tmp_path / "rows"))
    assert "\n" not in str(caught.value)


def test_parse_rows():
    chat = [{"role": "user", "content": "1+1"}]
    rows = loading.parse_rows(
        [*ROWS[:1], {"prompt": chat, "answer": 7, "question": "kept out"}], "rows.jsonl"
    )
    assert rows[0] == loading.Row("1+1", "2", {"level": 1})
    assert rows[1] == loading.Row(chat, "7", {})


@pytest.mark.parametrize(
    "row, sentence",
    [
        (
            {"text": "1+1", "answer": "2"},
            "row 2: there is no column `prompt` or `question`; the columns are text, answer",
        ),
        (
            {"question": "1+1", "level": 1},
            "row 2: there is no column `answer`; the columns are question, level",
        ),
        ({"question": "1+1", "answer": None}, "row 2: the column `answer` is empty"),
        ({"question": "", "answer": "2"}, "row 2: the question is ''; expected a non-empty string"),
        ({"question": " \n\t", "answer": "2"}, "row 2: the question is empty: "),
        (
            {"prompt": [{"role": "user", "content": " "}], "answer": "2"},
            "row 2: the question is em",
        ),
        ({"prompt": [], "answer": "2"}, "row 2: the question is []; expected a non-empty string"),
        ({"prompt": {"a": 1}, "answer": "2"}, "row 2: the question is {'a': 1}; expected"),
        ({"question": "1+1", "answer": ""}, "row 2: the answer is empty: ''; expected a non-empty"),
        ({"question": "1+1", "answer": " \n"}, "row 2: the answer is empty: "),
        ({"question": "1+1", "answer": "so 2\n####  "}, "row 2: the answer is empty: 'so 2"),
        (
            {"question": "1+1", "answer": ["2"]},
            "row 2: the answer is ['2']; expected a string or a n",
        ),
        ({"question": "1+1", "answer": {"a": 2}}, "row 2: the answer is {'a': 2}; expected a stri"),
        ({"question": "1+1", "answer": float("nan")}, "row 2: the answer is nan; expected a stri"),
        ({"question": "1+1", "answer": float("inf")}, "row 2: the answer is inf; expected a stri"),
        ({"question": "1+1", "answer": b"2"}, "row 2: the answer is b'2'; expected a stri"),
        (
            {"question": "1+1", "answer": "2", "kind": "sum"},
            "row 2: `kind` (the type of the answer) is 'sum'; expected integer, latex or choice",
        ),
        (
            {"question": "1+1", "answer": "2", "kind": ["latex"]},
            "row 2: `kind` (the type of the answer) is ['lat",
        ),
        ({"question": 5, "answer": "2"}, "row 2: the question is 5; expected a non-empty string"),
        (
            {"prompt": ["1+1"], "answer": "2"},
            "row 2: the prompt contains '1+1'; expected chat messages",
        ),
        (
            {"prompt": [{"role": "user"}], "answer": "2"},
            "row 2: the prompt contains {'role': 'user'}; expected",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"text": "1+1"}]}], "answer": "2"},
            "row 2: the prompt contains {'role': 'user', 'content': [{'text'",
        ),
    ],
)
def test_a_bad_row_is_named_with_its_number(row, sentence):
    with pytest.raises(UserError) as caught:
        loading.parse_rows([ROWS[0], row], "rows.jsonl")
    assert str(caught.value).startswith("rows.jsonl, " + sentence)


def test_columns_that_another_row_fills_are_none():
    """As parquet has them: each row has every column."""
    row = {"prompt": None, "question": "1+1", "answer": 2.5, "kind": None}
    assert loading.parse_rows([row], "rows") == [loading.Row("1+1", "2.5", {"kind": None})]
    row = {"question": "1+1", "answer": Decimal("2.50"), "kind": "latex"}
    assert loading.parse_rows([row], "rows") == [loading.Row("1+1", "2.50", {"kind": "latex"})]


# ------------------------------------------------------------------------ rows that repeat


def written(tmp_path, *rows):
    path = tmp_path / "mine.jsonl"
    lines = [
        json.dumps(dict(zip(("question", "answer", "kind"), row, strict=False))) for row in rows
    ]
    path.write_text("\n\n".join(lines))  # empty lines are no rows
    return str(path)


@pytest.mark.parametrize(
    "rows, told",
    [
        ([("1+1", "2"), ("1+2", "3")], None),
        ([("1+1", "2"), ("1+2", "3"), ("1+1", "2")], "1 row repeats an earlier question: "
         "rows 1 and 3"),
        ([("1 + 1", "2"), ("$1+1$.", "2.0")], "rows 1 and 2"),  # by normal form and value
        ([("x+1?", "x+1"), ("x+1?", "1 + x")], "rows 1 and 2"),  # which only algebra can tell
        ([("a", "1")] * 6, "5 rows repeat an earlier question: rows 1 and 2; rows 1 and "
         "3; rows 1 and 4; ..."),
        # A question may be about capital letters.
        ([("Capitals in aB?", "1"), ("capitals in AB?", "2")], None),
        ([("Sum of a?", "1"), ("sum of A?", "1")], "rows 1 and 2"),
    ],
)  # fmt: skip
def test_a_note_lists_repeated_questions(tmp_path, rows, told):
    path = written(tmp_path, *rows)
    found = loading.load_section(section(path))
    assert len(found.rows) == len(rows)
    if told is None:
        assert found.notes == []
        loading.load_section(section(path, strict=True))
        return
    (note,) = found.notes
    assert note.startswith(f"{path}: ") and note.endswith(told)
    with pytest.raises(UserError) as caught:
        loading.load_section(section(path, strict=True))
    assert str(caught.value) == f"{note}; data.strict=true does not allow repeated questions"
    with pytest.raises(UserError, match="strict=true does not allow repeated questions"):
        loading.load_set(parse_spec(path), strict=True)
    assert loading.load_set(parse_spec(path), strict=None).notes == []


@pytest.mark.parametrize(
    "rows, sentence",
    [
        ([("1+1", "2"), ("2+2", "4"), ("1 + 1 ", "3")], "rows 1 and 3 ask the same question with "
         "the answers '2' and '3'; expected one answer for each question"),
        ([("a", "B", "choice"), ("a", "C", "choice")], "with the answers 'B' and 'C'"),
        ([("a", "1"), ("a", "2"), ("a", "3")], "'1' and '2' (the first of 2 such pairs)"),
    ],
)  # fmt: skip
def test_two_answers_to_a_question_are_an_error(tmp_path, rows, sentence):
    path = written(tmp_path, *rows)
    for strict in (False, True):
        with pytest.raises(UserError) as caught:
            loading.load_section(section(path, strict=strict))
        assert str(caught.value).startswith(f"{path}: rows 1 and") and sentence in str(caught.value)
    assert len(loading.load_set(parse_spec(path), strict=None).rows) == len(rows)


def test_two_answers_on_the_hub_are_a_note(monkeypatch):
    """The user cannot correct them there."""
    rows = [{"question": "1+1", "answer": "2"}, {"question": "1+1", "answer": "3"}]
    monkeypatch.setattr(loading, "open_rows", lambda *_: iter(rows))
    (note,) = loading.load_section(section("owner/set")).notes
    assert note == "owner/set: rows 1 and 2 ask the same question with the answers '2' and '3'"
    with pytest.raises(UserError, match="expected one answer for each question"):
        loading.load_section(section("owner/set", strict=True))


def test_rows_of_a_cleaned_set_keep_their_number_in_the_file(tmp_path):
    """The second row repeats the first and is left out; the third is too long."""
    rows = [{"prompt": q, "solution": "1"} for q in ("a", "a", "b " * 9, "c")]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = loading.load_set(parse_spec(f"dapo-math-17k={path}"))
    assert found.numbers == [1, 3, 4]
    problems = data.make_problems(found.rows, Words(), PromptSection(), 8, loaded=found)
    (note,) = data.note_left_out(problems, found, 8, strict=False)
    assert note.startswith(f"{path}, row 3: the prompt has more tokens than data.max_prompt_length")


def test_training_leaves_out_what_the_evaluation_has(tmp_path):
    training, held = tmp_path / "train.jsonl", tmp_path / "held.jsonl"
    training.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    held.write_text(json.dumps({"question": "$2 + 3$.", "answer": "5"}) + "\n")

    def config(shared, dataset=held, of=training):
        section = EvalSection(dataset=str(dataset), shared=shared)
        return TrainConfig(data=DataSection(dataset=str(of)), eval=section)

    found = loading.load_training(config("leave_out"))
    assert [row.question for row in found.rows] == ["1+1", "4+4"] and found.numbers == [1, 3]
    told = f"{training}, row 2: the question is also in eval.dataset; left out of training"
    assert found.notes == [told]
    for other in (config("refuse"), config("leave_out", "", training)):
        assert len(loading.load_training(other).rows) == 3
    with pytest.raises(UserError) as caught:
        loading.load_training(config("leave_out", training))
    assert str(caught.value) == (
        f"eval.dataset {str(training)!r} contains every question of data.dataset "
        f"{str(training)!r}, so eval.shared=leave_out leaves none to train on"
    )


def test_long_prompts_are_named(tmp_path):
    path = written(tmp_path, *[(f"{n} " + "word " * (n % 4), "1") for n in range(30)])
    found = loading.load_section(section(path))
    problems = data.make_problems(found.rows, Words(), PromptSection(), 5, loaded=found)
    (note,) = data.note_left_out(problems, found, 5, strict=False)
    assert note == (
        f"{path}, rows 4, 8, 12, 16, 20 and 2 more: the prompt has more tokens than "
        "data.max_prompt_length (5); left out"
    )
    with pytest.raises(
        UserError, match=r"rows 4, 8, .* \(5\); data.strict=true does not allow prompts"
    ):
        data.note_left_out(problems, found, 5, strict=True)
    problems = data.make_problems(found.rows, Words(), PromptSection(), 9, loaded=found)
    assert data.note_left_out(problems, found, 9, strict=True) == []


def test_a_question_that_is_not_a_text_is_named(tmp_path):
    path = written(tmp_path, ("1+1", "2"), ("\ud800", "3"))
    with pytest.raises(UserError, match=f"{path}, row 2: the question is .*; expected UTF-8 text"):
        loading.load_section(section(path))
    rows = [loading.Row("1+1", "2", {}), loading.Row("\ud800", "3", {})]  # not from a file
    with pytest.raises(UserError, match="^row 2: the question is .*; expected UTF-8 text"):
        data.make_problems(rows, Words(), PromptSection(), 9)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("so 1,200.\n#### 1,234", "1234"),
        ("#### -5 ", "-5"),
        ("#### 1 #### 2", "2"),
        (" 1,234 ", "1,234"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_final_answer(text, answer):
    assert loading.final_answer(text) == answer


def test_gsm8k_as_published(shared_data):
    path = shared_data / "gsm8k" / "train.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    rows = loading.parse_rows(loading.load_rows(section(path)), str(path))
    assert len(rows) == 7_473
    answers = [int(row.answer) for row in rows]
    assert (rows[0].question[:20], answers[0]) == ("Natalia sold clips t", 72)


# --------------------------------------------------------------------------------- prompts


def test_a_prompt_goes_through_the_chat_template():
    words = Words()
    assert chat_prompts.render_prompt(words, "1+1", PromptSection()) == "<user> 1+1 <assistant>"
    full = PromptSection(
        system="be brief", instruction="An integer.", example_question="2+2", example_answer="4"
    )
    assert chat_prompts.render_prompt(words, "1+1", full) == (
        "<system> be brief <user> 2+2 An integer. <assistant> 4 <user> 1+1 An integer. <assistant>"
    )
    assert chat_prompts.R1_SYSTEM in chat_prompts.render_prompt(
        words, "1+1", PromptSection(system="r1")
    )


def test_chat_messages_are_taken_as_they_are():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = chat_prompts.render_prompt(Words(), chat, PromptSection(instruction="not added"))
    assert rendered == "<user> a <assistant> b <assistant>"


def test_a_problem_keeps_its_question_without_the_instruction():
    chat = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    rows = [loading.Row("1+1", "2", {}), loading.Row(chat, "3", {})]
    problems = data.make_problems(
        rows, Words(), PromptSection(system="s", instruction="An integer."), 99
    )
    assert problems.questions == ["1+1", "a\n\nb"]
    assert problems.texts[0] == "<system> s <user> 1+1 An integer. <assistant>"


def test_an_instruction_with_its_own_separator():
    prompt = PromptSection(instruction="\nAn integer.")
    assert (
        chat_prompts.render_prompt(Words(), "1+1", prompt) == "<user> 1+1\nAn integer. <assistant>"
    )


def test_a_template_that_rejects_is_one_sentence():
    class Strict(Words):
        def apply_chat_template(self, messages, **options):
            raise RuntimeError("System role not supported\nin line 1")

    with pytest.raises(UserError) as caught:
        chat_prompts.render_prompt(Strict(), "1+1", PromptSection(system="s"))
    assert str(caught.value) == (
        "the tokenizer's chat template rejects the turns system, user: System role not supported"
    )


def test_a_tokenizer_without_a_template_gets_plain_text():
    assert chat_prompts.render_prompt(Plain(), "1+1", PromptSection(system="s")) == "s\n\n1+1\n\n"


def test_qwens_template(shared_data):
    directory = shared_data / "tokenizers" / "qwen2.5-instruct"
    if not directory.is_dir():
        pytest.skip(f"{directory} is absent")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    rows = loading.parse_rows(ROWS, "rows")
    problems = data.make_problems(rows, tokenizer, PromptSection(system="Hi"), 512)
    # The format that Qwen's own documentation shows.
    assert problems.texts[0] == (
        "<|im_start|>system\nHi<|im_end|>\n<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(problems.tokens[0]) == problems.texts[0]
    assert problems.tokens[0][0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_long_prompts_are_left_out_and_counted():
    rows = loading.parse_rows(
        [{**row, "question": "word " * 3 * i} for i, row in enumerate(ROWS, 1)], ""
    )
    # 3, 6 and 9 words, and the two tags
    problems = data.make_problems(rows, Words(), PromptSection(), 8)
    assert [len(tokens) for tokens in problems.tokens] == [5, 8]
    assert problems.left_out == 1
    assert problems.answers == ["2", "5"]
    assert problems.columns == [{"level": 1}, {"level": 2}]
    assert problems.questions == ["word " * 3, "word " * 6]
    with pytest.raises(
        UserError, match="max_prompt_length is 4, but the shortest of the 3 .* 5 tokens"
    ):
        data.make_problems(rows, Words(), PromptSection(), 4)


# ----------------------------------------------------------------------------------- order


@pytest.mark.parametrize("rows, batch", [(12, 4), (10, 4), (3, 8), (1, 2)])
def test_every_epoch_is_a_permutation(rows, batch):
    rows_of = order.batch_order(rows, batch, seed=7)
    steps = -(-rows * 3 // batch)
    flat = np.concatenate([rows_of(step) for step in range(steps)])
    assert all(rows_of(step).shape == (batch,) for step in range(steps))
    epochs = flat[: 3 * rows].reshape(3, rows)  # epochs begin inside of a batch, too
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(rows), (3, 1)))
    if rows > 9:
        assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


def test_the_order_is_a_function_of_seed_and_step():
    one, other = (order.batch_order(100, 8, seed=3) for _ in range(2))
    backwards = {step: other(step) for step in reversed(range(40))}
    for step in range(40):
        np.testing.assert_array_equal(one(step), backwards[step])
    another = order.batch_order(100, 8, seed=4)
    assert any((one(step) != another(step)).any() for step in range(3))


def test_another_process_gets_the_same_order():
    code = "from iapo_jax.data import order as o; print(o.batch_order(50, 5, 11)(23).tolist())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == order.batch_order(50, 5, 11)(23).tolist()


@pytest.mark.parametrize(
    "rows, batch, seed, step, expected",
    [  # of grain 0.2.18: MapDataset.range(rows).seed(seed).shuffle().repeat().batch(batch)[step]
        (1, 3, 0, 5, [0, 0, 0]),
        (2, 4, 1, 7, [0, 1, 0, 1]),
        (12, 4, 7, 2, [10, 1, 3, 5]),
        (50, 5, 11, 23, [12, 13, 30, 29, 40]),
        (7473, 8, 0, 100, [5489, 1853, 3126, 6637, 5473, 1088, 6940, 3759]),
        (65536, 6, 3, 10923, [20986, 3472, 44663, 52839, 26642, 12292]),
        (70000, 6, 2**31 - 1, 12000, [27123, 27953, 8325, 45568, 12780, 40867]),
    ],
)
def test_the_order_is_that_of_earlier_versions(rows, batch, seed, step, expected):
    assert order.batch_order(rows, batch, seed)(step).tolist() == expected


def test_every_row_comes_once_for_a_power_of_four_and_one_rows():
    """grain repeats a row of such a set, and omits another."""
    rows = 4**8 + 1
    found = order.batch_order(rows, rows, seed=3)(0)
    np.testing.assert_array_equal(np.sort(found), np.arange(rows))


def test_pad_rows():
    tokens, length = data.pad_rows([[5], [6, 7, 8], []], 4)
    np.testing.assert_array_equal(tokens, [[5, 0, 0, 0], [6, 7, 8, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(length, [1, 3, 0])
    assert tokens.dtype == length.dtype == np.int32


def test_bucket():
    assert [data.bucket(n, 16, 40) for n in (1, 16, 17, 33, 40)] == [16, 16, 32, 40, 40]
    assert data.bucket(3, 0, 40) == 40
