"""What the probe asks, as ids: postfix, boundary tokens, answers of a group."""

import json

import jax
import numpy as np
import pytest

from iapo_jax import probes
from iapo_jax.config import InformationSection, ModelSection
from iapo_jax.errors import UserError
from iapo_jax.pretrained import encode, load_tokenizer, open_pretrained, token_text, token_texts
from iapo_jax.probes import make_answers
from iapo_jax.sharding import by_prompt, make_mesh, put

END = "</answer>"


@pytest.fixture(scope="module")
def opened(root):
    return open_pretrained(ModelSection(path=str(root / "experiments/arithmetic/model")))


@pytest.fixture(scope="module")
def qwen(shared_data):
    return load_tokenizer(shared_data / "tokenizers" / "qwen2.5-instruct")


def answers(opened, completions, golds=("49",), **options):
    given = dict(estimator="answer_set_entropy", answer_end=END, width=8) | options
    return make_answers(opened.tokenizer, golds=golds, completions=completions, **given)


def texts(opened, made, p=0, g=0):
    rows = zip(made.tokens[p, g], made.length[p, g], strict=True)
    return [opened.tokenizer.decode(row[:n]) for row, n in rows if n]


def says(answer):
    return f"1+1=2. </think><answer>{answer}</answer>"


def test_the_candidates_are_gold_and_what_the_group_says(opened):
    made = answers(opened, [[says("49"), says("50"), "no answer", says("7"), says("50")]])
    assert made.tokens.shape == (1, 1, 6, 8) and made.tokens.dtype == np.int32
    assert texts(opened, made) == ["49</answer>", "50</answer>", "7</answer>"]
    assert made.meaning[0, 0, :3].tolist() == [0, 1, 2]
    assert not made.length[0, 0, 3:].any()


def test_the_order_of_the_group_changes_nothing(opened):
    group = [says("5"), says("12"), says("49"), says("3")]
    first, turned = (answers(opened, [rows]) for rows in (group, group[::-1]))
    jax.tree.map(np.testing.assert_array_equal, first, turned)


def test_one_number_written_twice_is_one_answer(opened):
    made = answers(opened, [[says("1,000"), says("1000.0"), says("7")]], golds=["1000"])
    written = dict(zip(texts(opened, made), made.meaning[0, 0].tolist(), strict=False))
    same = {text: meaning for text, meaning in written.items() if not text.startswith("7")}
    assert len(same) >= 2 and set(same.values()) == {0}  # this tokenizer has no comma
    assert written["7</answer>"] != 0


def test_without_a_gold_answer_the_group_alone_is_the_set(opened):
    made = answers(opened, [[says("4"), says("5")]], golds=[None])
    assert texts(opened, made) == ["4</answer>", "5</answer>"]


def test_references_of_each_kind(opened):
    group = [[says("4"), "none at all"], [says("5"), says("61")]]
    options = dict(estimator="answer_log_prob", golds=["49", "8"])
    gold = answers(opened, group, **options)
    assert gold.tokens.shape == (2, 1, 1, 8)
    assert [texts(opened, gold, p) for p in (0, 1)] == [["49</answer>"], ["8</answer>"]]
    own = answers(opened, group, reference="own", **options)
    assert own.tokens.shape == (2, 2, 1, 8)
    assert [texts(opened, own, *at) for at in np.ndindex(2, 2)] == [
        ["4</answer>"],
        [],
        ["5</answer>"],
        ["61</answer>"],
    ]
    assert answers(opened, group, estimator="answer_entropy", golds=["49", "8"]) is None


@pytest.mark.parametrize(
    "answer",
    ["9" * 10**6, "１２", "</think>", "<eos>", "\x00", "{" * 10**5, "<answer>", " \n\t "],
    ids=["megabyte", "wide digits", "end of thinking", "stop", "nul", "braces", "tag", "white"],
)
def test_hostile_answers_are_short_rows_of_ids(opened, answer):
    made = answers(opened, [[says(answer), says("2")]])
    assert made.tokens.shape == (1, 1, 3, 8)
    assert (made.length <= 8).all()
    assert {"49</answer>", "2</answer>"} <= set(texts(opened, made))


def test_answers_that_begin_alike_beyond_the_width_are_one(opened):
    made = answers(opened, [[says("123456789"), says("123456780")]], width=4)
    assert texts(opened, made) == ["49</answer>", "1234"]


def test_the_width_is_that_of_the_longest_gold_answer(opened):
    width = lambda *golds, limit=16: probes.answer_width(opened.tokenizer, golds, END, limit)  # noqa: E731
    assert width("7") == 4 and width("7", "12345") == 8 and width("1" * 50) == 16
    assert width("12345", limit=3) == 3
    with pytest.raises(UserError, match="'  ' has no tokens"):
        width("7", "  ")


def test_the_postfix_is_tokenised_as_it_is_written(opened, qwen):
    written = "</think>\n<answer>"
    ids = probes.encode_postfix(qwen, written)
    assert qwen.decode(ids) == written and len(ids) > 2
    assert len(probes.encode_postfix(opened.tokenizer, "</think><answer>")) == 2
    with pytest.raises(UserError, match="information.postfix is empty"):
        probes.encode_postfix(qwen, "")


def test_boundaries_are_all_tokens_that_hold_the_text(opened, qwen):
    marked = probes.boundary_tokens(opened.tokenizer, opened.config.vocab_size, ["."])
    written = token_texts(opened.tokenizer, opened.config.vocab_size)
    assert marked.sum() > 0
    assert all(("." in text) == mark for text, mark in zip(written, marked, strict=True))
    lines = probes.boundary_tokens(qwen, 151_936, ["\n"])
    for text in ("\n", ".\n\n", ")\n"):
        (token,) = encode(qwen, text)
        assert lines[token]
    assert not lines[151_900]  # a padding row of the vocabulary
    with pytest.raises(UserError, match="information.boundaries has 'zebra'"):
        probes.boundary_tokens(opened.tokenizer, opened.config.vocab_size, ["zebra"])


def test_the_text_of_one_token_shows_its_bytes(qwen):
    parts = [token_text(qwen, token) for token in encode(qwen, "a 🧮 é\n")]
    assert "\ufffd" not in "".join(parts)
    assert parts[0] == "a" and any("\\x" in part for part in parts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 3},
        {"boundaries": [". "]},
        {"estimator": "answer_log_prob"},
        {"estimator": "answer_log_prob", "reference": "own"},
        {"estimator": "answer_set_entropy"},
    ],
    ids=json.dumps,
)
def test_a_dry_run_knows_the_shapes(opened, options):
    """`abstract_probe` is what `ask` gives, for every estimator."""
    section = InformationSection(postfix="</think><answer>", **options)
    mesh = make_mesh(2, 1, 1)
    asker = probes.make_asker(section, opened, mesh, ["49", "8"])
    tokens = put(np.zeros((2, 3, 10), np.int32), by_prompt(mesh))
    length = put(np.full((2, 3), 6, np.int32), by_prompt(mesh))
    group = [says("4"), says("5"), says("6")]
    made = probes.ask(asker, tokens, length, ["49", "8"], [group, group])
    told = probes.abstract_probe(asker, (2, 3, 10))
    shape = lambda x: (x.shape, str(x.dtype))  # noqa: E731
    assert jax.tree.map(shape, made) == jax.tree.map(shape, told)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"estimator": "entropy"}, "information.estimator is 'entropy'; expected one of answer_en"),
        ({"reference": "mine"}, "information.reference is 'mine'; expected one of gold, own"),
        ({"stride": 2, "boundaries": ["."]}, "information.stride is 2, and information.boundaries"),
        ({"postfix": ""}, "information.postfix is empty"),
        ({"boundaries": [""]}, "information.boundaries has ''"),
    ],
)
def test_mistakes_are_sentences(opened, options, sentence):
    section = InformationSection(**({"postfix": "</think><answer>"} | options))
    with pytest.raises(UserError, match=sentence):
        probes.make_asker(section, opened, make_mesh(1, 1, 1), ["49"])
