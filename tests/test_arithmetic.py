"""The arithmetic task: problems, worked reasoning, tokenizer, files."""

import hashlib
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers

from iapo_jax.data import arithmetic

FOLDER = Path(__file__).parents[1] / "experiments" / "arithmetic"
NAMES = ("problems", "tokenizer", "make_data", "testbed.pieces")
N = 2000
DIGESTS = {
    "train": "a6b86abe3f6fabc2b51b751d86b9f1dad73f24e12bfa490bf19cdd9111ca337c",
    "select": "a31d6cce05395a4d8581a69046225344fc5a65e656b02944040881043feec63b",
    "test": "416e663201910728bb6072a8fa5d36ee9106569af7503434d1dcfcce76f6c2cf",
}


@pytest.fixture(scope="module")
def task():
    """The experiment's modules by name (``experiments`` is not a package)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in NAMES:
            patch.delitem(sys.modules, name, raising=False)
        yield {name.rpartition(".")[2]: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def problems(task):
    return task["problems"]


@pytest.fixture(scope="module")
def shared(task):
    """Pieces, as all generators of the experiments have them."""
    return task["pieces"]


@pytest.fixture(scope="module")
def tokenizer(task, tmp_path_factory):
    """The saved tokenizer as the training opens it."""

    directory = task["tokenizer"].save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def samples(problems):
    """Problems with a drawn reasoning each."""
    rng = np.random.default_rng(0)
    drawn = [arithmetic.draw_problem(rng) for _ in range(N)]
    return [(problem, problems.draw_reasoning(rng, problem)) for problem in drawn]


@pytest.fixture(scope="module")
def rows(problems):
    rng = np.random.default_rng(1)
    return [problems.sft_row(rng, categories=True) for _ in range(N)]


def equation_holds(text):
    """Whether ``12+34=46`` is true, worked out from its parts."""
    a, sign, b, c = re.fullmatch(r"(\d\d)([+-])(\d\d)=(\d\d)", text).groups()
    return int(c) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def texts(row):
    return "".join(text for text, _ in row["completion"])


def reasoning(row):
    return texts(row).split("</think>")[0]


def is_early(row):
    return any(weight == 0 for _, weight in row["completion"])


def test_problem_example():
    problem = arithmetic.Problem((12, 34, 15, 28), ("+", "-", "+"))
    assert problem.question == "12+34-15+28"
    assert problem.answer == "59"
    assert problem.steps == ["12+34=46", "46-15=31", "31+28=59"]
    assert problem.inverses == ["46-34=12", "31+15=46", "59-28=31"]


def test_problems_in_range_and_correct(samples):
    for problem, _ in samples:
        assert len(problem.numbers) in (3, 4, 5)
        values = [int(n) for n in re.findall(r"[+-]?\d+", problem.question)]
        assert problem.answer == str(sum(values))
        assert problem.partials == np.cumsum(values).tolist()
        assert all(10 <= n <= 99 for n in (*problem.partials, *problem.numbers))
        assert all(equation_holds(step) for step in problem.steps)


def test_reasoning_is_true_and_complete(problems, samples, shared):
    seen = set()
    for problem, pieces in samples:
        needed = [piece.text for piece in pieces if piece.category == "needed"]
        assert needed == [f"{step}. " for step in problem.steps]
        for text, category in pieces:
            seen.add(category)
            assert all(equation_holds(e) for e in re.findall(r"\d\d[+-]\d\d=\d\d", text))
            if category == "restate":
                assert text == f"we need {problem.question}. "
            if category == "hesitate" and text != "wait. ":
                assert text.endswith(f" {problem.answer}. ")
    assert seen == set(shared.CATEGORIES)


def test_token_counts(problems, samples, shared):
    total = [shared.count_tokens(pieces) for _, pieces in samples]
    needed = [shared.count_tokens(pieces, "needed") for _, pieces in samples]
    assert max(total) < 110
    assert 46 < np.mean(total) < 56
    assert 26 < np.mean(needed) < 28.5
    assert np.mean(np.equal(total, needed)) > 0.02  # some are quite lean
    assert np.mean(np.array(total) > 2 * np.array(needed)) > 0.2  # and some are long


def test_verbosity_and_limit(problems, shared):
    rng = np.random.default_rng(2)
    for _ in range(200):
        problem = arithmetic.draw_problem(rng)
        lean = problems.draw_reasoning(rng, problem, verbosity=0.0)
        assert {piece.category for piece in lean} == {"needed"}
        long = problems.draw_reasoning(rng, problem, verbosity=1.0, max_tokens=40)
        assert shared.count_tokens(long) <= 40
    with pytest.raises(ValueError, match="max_tokens"):
        problems.draw_reasoning(rng, problem, max_tokens=10)


def test_rows(problems, rows, shared):
    for row in rows:
        assert texts(row).endswith(f"</think><answer>{row['answer']}</answer>")
        assert "".join(text for text, _ in row["categories"]) == reasoning(row)
        tail = row["completion"][1:] if reasoning(row) else row["completion"]
        if is_early(row):
            assert tail == [["</think><answer>", 0], [f"{row['answer']}</answer>", 1]]
        else:
            assert tail == [[f"</think><answer>{row['answer']}</answer>", 1]]
    early = [row for row in rows if is_early(row)]
    assert 0.24 < len(early) / len(rows) < 0.32
    assert any(not reasoning(row) for row in early)
    lengths = [
        np.mean([len(shared.split_tokens(reasoning(row))) for row in rows if is_early(row) == e])
        for e in (True, False)
    ]
    assert 0.4 < lengths[0] / lengths[1] < 0.6  # cut uniformly: half as long on average


def test_rows_exclude_and_repeat(problems, rows):
    again = np.random.default_rng(1)
    assert [problems.sft_row(again, categories=True) for _ in range(50)] == rows[:50]
    first = {row["question"] for row in rows[:50]}
    rng = np.random.default_rng(1)
    drawn = {problems.sft_row(rng, exclude=first)["question"] for _ in range(50)}
    assert not drawn & first


def test_problem_rows():
    one = arithmetic.problem_rows(0, 500)
    assert one == arithmetic.problem_rows(0, 500)
    taken = {row["question"] for row in one}
    assert len(taken) == 500
    two = arithmetic.problem_rows(0, 500, exclude=taken)
    assert not taken & {row["question"] for row in two}


def test_tokenizer_round_trip(problems, tokenizer, rows, shared):
    for row in rows:
        ids = tokenizer.encode(texts(row), add_special_tokens=False)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == texts(row)
        assert tokenizer.decode(ids, skip_special_tokens=True) == texts(row)
        # Segments encode one by one to the same ids, and the generator counts the same tokens.
        parts = [tokenizer.encode(t, add_special_tokens=False) for t, _ in row["completion"]]
        assert sum(parts, []) == ids
        assert tokenizer.tokenize(reasoning(row)) == shared.split_tokens(reasoning(row))


def test_tokenizer_beside_a_qwen2_model(task, tokenizer, rows, root, tmp_path):
    """transformers forces Qwen2's own class onto a directory with a qwen2 config.json."""
    task["tokenizer"].save_tokenizer(tmp_path)
    config = (root / "experiments" / "arithmetic" / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    forced = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert type(forced).__name__ == "Qwen2Tokenizer"
    assert forced.get_vocab() == tokenizer.get_vocab()
    assert forced.eos_token_id == tokenizer.eos_token_id == 1
    for row in rows[:300]:
        ids = tokenizer.encode(texts(row), add_special_tokens=False)
        assert forced.encode(texts(row), add_special_tokens=False) == ids
        assert forced.decode(ids) == texts(row)


def test_tokenizer_vocabulary(task, tokenizer):
    assert len(tokenizer) == len(task["tokenizer"].vocabulary()) <= 64
    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    special = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
    for token in (*tags, *special, *"0123456789", *"+-=?", ". ", ".", " ", "\n", "check "):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
        assert tokenizer.decode([tokenizer.convert_tokens_to_ids(token)]) == token
    text = "<assistant><think>ok </think><answer>59</answer><eos><pad>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text[11:-10]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


def test_chat_template(tokenizer):
    user = {"role": "user", "content": "12+34-15"}
    ids = tokenizer.apply_chat_template(
        [user], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert isinstance(ids, list) and all(isinstance(i, int) for i in ids)
    assert tokenizer.decode(ids) == "<user>12+34-15<assistant><think>"
    assert len(ids) == 11
    turns = [
        {"role": "system", "content": "check it."},
        user,
        {"role": "assistant", "content": "<think></think><answer>31</answer>"},
    ]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == (
        "check it.<user>12+34-15<assistant><think></think><answer>31</answer><eos>"
    )


def test_files(task, tmp_path, monkeypatch):
    arguments = ["--out", str(tmp_path), "--sft_rows", "3000"]
    monkeypatch.setattr(sys, "argv", ["make_data.py", *arguments])
    task["make_data"].main()
    read = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()]
        for name in ("train", "select", "test", "sft")
    }
    assert [len(rows) for rows in read.values()] == [4000, 512, 1024, 3000]
    questions = {name: {row["question"] for row in rows} for name, rows in read.items()}
    for name in ("train", "select", "test"):
        assert len(questions[name]) == len(read[name])
        others = [questions[other] for other in questions if other != name]
        assert questions[name].isdisjoint(set().union(*others))
    assert set(read["sft"][0]) == {"question", "answer", "completion"}
    assert (tmp_path / "tokenizer" / "tokenizer.json").exists()


@pytest.mark.parametrize("split, count", [("train", 4000), ("select", 512), ("test", 1024)])
def test_the_generated_splits_are_those_of_the_published_figures(split, count):
    """By the digest of their JSON lines, in order."""
    rows = arithmetic.make_splits()[split]
    assert len(rows) == count
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    assert hashlib.sha256(lines.encode()).hexdigest() == DIGESTS[split]
