"""The probe as ids: postfix, boundary tokens, answers of a group."""

import itertools
import json
import re
from fractions import Fraction

import jax
import numpy as np
import pytest
from before_jax import MESHES

from iapo_jax.config.sections import InformationSection, ModelSection
from iapo_jax.errors import UserError
from iapo_jax.information import answer_tokens, probes
from iapo_jax.information.answer_tokens import make_answers
from iapo_jax.pretrained.model_directory import open_pretrained
from iapo_jax.pretrained.tokenization import (
    encode,
    load_tokenizer,
    token_text,
    token_texts,
)
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


def test_an_answer_without_tokens_is_named(opened):
    answer_tokens.check_gold_answers(opened.tokenizer, ["7", "12345"], END)
    with pytest.raises(UserError, match="'  ' has no tokens"):
        answer_tokens.check_gold_answers(opened.tokenizer, ["7", "  "], END)


def test_wrong_answers_longer_than_every_gold_one_are_whole(opened):
    """In training too, where only the gold answers are known beforehand."""
    section = InformationSection(postfix="</think><answer>", estimator="answer_set_entropy")
    mesh = make_mesh(1, 1, 1)
    probe_maker = probes.make_probe_maker(section, opened, mesh, ["42", "7"])
    tokens = put(np.zeros((1, 2, 10), np.int32), by_prompt(mesh))
    length = put(np.full((1, 2), 6, np.int32), by_prompt(mesh))
    made = probes.make_probe(
        probe_maker, tokens, length, ["42"], [[says("123456"), says("123499")]]
    )
    wanted = ["42</answer>", "123456</answer>", "123499</answer>"]
    assert texts(opened, made.answers) == wanted


def test_the_postfix_is_tokenized_as_it_is_written(opened, qwen):
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
    with pytest.raises(UserError, match="information.boundaries contains 'zebra'"):
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
    """`abstract_probe` has the shapes of `make_probe`, for every estimator."""
    section = InformationSection(postfix="</think><answer>", **options)
    mesh = make_mesh(2, 1, 1)
    probe_maker = probes.make_probe_maker(section, opened, mesh, ["49", "8"])
    tokens = put(np.zeros((2, 3, 10), np.int32), by_prompt(mesh))
    length = put(np.full((2, 3), 6, np.int32), by_prompt(mesh))
    group = [says("4"), says("5"), says("6")]
    made = probes.make_probe(probe_maker, tokens, length, ["49", "8"], [group, group])
    told = probes.abstract_probe(probe_maker, (2, 3, 10))

    def shape(x):
        return (x.shape, str(x.dtype))

    assert jax.tree.map(shape, made) == jax.tree.map(shape, told)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"estimator": "entropy"}, "information.estimator is 'entropy'; expected one of answer_en"),
        ({"reference": "mine"}, "information.reference is 'mine'; expected one of gold, own"),
        ({"stride": 2, "boundaries": ["."]}, "information.stride is 2 and information.boundaries"),
        ({"postfix": ""}, "information.postfix is empty"),
        ({"boundaries": [""]}, "information.boundaries contains an empty string"),
        ({"end_of_thinking": ["a", ""]}, "information.end_of_thinking contains an empty string"),
    ],
)
def test_mistakes_are_sentences(opened, options, sentence):
    section = InformationSection(**({"postfix": "</think><answer>"} | options))
    with pytest.raises(UserError, match=sentence):
        probes.make_probe_maker(section, opened, make_mesh(1, 1, 1), ["49"])


# ------------------------------------------------------------------ answers of any group

HOSTILE = [
    "9" * 10**6,
    "１２",
    "<|im_end|>",
    "</answer>",
    "\\boxed{" * 500,
    "\x00",
    "1,000",
    "é\u200b",
]


@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "answer_log_prob"},
        {"estimator": "answer_log_prob", "reference": "own"},
        {"estimator": "answer_set_entropy"},
    ],
    ids=json.dumps,
)
def test_any_group_of_a_size_gives_the_same_shapes(opened, options):
    """No answers at all, one, as many as completions, hostile ones, no gold: one program for all;
    what is there stands at the front, the rest is zeros, and every id has a row of the model."""
    nothing, full = ["no answer"] * 8, [says(str(n)) for n in range(8)]
    groups = [nothing, [says("49")] * 8, full, [says(text) for text in HOSTILE]]
    golds = ["49", None, "12", ""]
    shapes = set()
    for first, gold in itertools.product(groups, golds):
        made = answers(opened, [first, nothing], golds=[gold, None], **options)
        shapes.add(tuple((leaf.shape, str(leaf.dtype)) for leaf in made))
        inside = np.arange(8) < made.length[..., None]
        assert not made.tokens[~inside].any() and made.length.min() >= 0
        assert ((made.tokens >= 0) & (made.tokens < opened.config.vocab_size)).all()
        assert (np.diff(np.sign(made.length), axis=-1) <= 0).all()
        assert ((made.meaning >= 0) & (made.meaning < made.meaning.shape[-1])).all()
        assert not made.length[1].any()  # the second prompt has neither gold nor answers
    rows = {"answer_set_entropy": (2, 1, 9)}.get(
        options["estimator"], (2, 8 if options.get("reference") == "own" else 1, 1)
    )
    assert shapes == {(((*rows, 8), "int32"), (rows, "int32"), (rows, "int32"))}


def test_a_group_in_any_order_is_the_same_set(qwen):
    """With the real tokenizer, equal numbers and hostile texts among them; gold stays the first."""
    rng = np.random.default_rng(0)
    group = [says(text) for text in ("1000", "1,000", "1000.0", "A", "a", *HOSTILE)]
    group += [says(str(n)) for n in range(60)]  # enough for a set to change its order
    made = [
        make_answers(
            qwen,
            estimator="answer_set_entropy",
            golds=["zebra"],
            completions=[[group[i] for i in rng.permutation(len(group))]],
            answer_end=END,
            width=8,
        )
        for _ in range(10)
    ]
    for other in made[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, made[0])
    assert made[0].tokens[0, 0, 0, : made[0].length[0, 0, 0]].tolist() == encode(
        qwen, "zebra" + END
    )
    there = made[0].length[0, 0]
    rows = {tuple(row[:n]) for row, n in zip(made[0].tokens[0, 0], there, strict=True) if n}
    assert len(rows) == (there > 0).sum()  # each once


def test_meanings_are_those_of_exact_numbers(qwen):
    """Random numbers in several spellings: two answers mean the same where Fraction says so, and
    digits of other scripts, which Python's int would read, are no numbers."""
    rng = np.random.default_rng(1)
    spellings = (str, "{:,}".format, "{}.0".format, "${}".format, "{}.".format, " {} ".format)
    written = [
        spell(int(n))
        for n in rng.integers(-1, 3, 12) * 1000
        for spell in rng.permutation(spellings)
    ]
    wide = ["１０００", "٣"]
    made = make_answers(
        qwen,
        estimator="answer_set_entropy",
        golds=["1000"],
        completions=[[says(text) for text in written + wide]],
        answer_end=END,
        width=16,
    )
    rows = zip(made.tokens[0, 0], made.length[0, 0], made.meaning[0, 0], strict=True)
    found = {qwen.decode(row[:n]).removesuffix(END): int(m) for row, n, m in rows if n}
    assert found["1000"] == 0 and len(found) > 10
    ascii_only = {text: m for text, m in found.items() if text.isascii()}
    value = {text: Fraction(re.sub(r"[$, ]", "", text).rstrip(".")) for text in ascii_only}
    for one, other in itertools.combinations(ascii_only, 2):
        assert (found[one] == found[other]) == (value[one] == value[other]), (one, other)
    assert set(wide) <= set(found)
    others = [m for text, m in found.items() if text not in wide]
    assert all(found[text] not in others for text in wide)


def test_an_answer_is_closed_unless_it_is_cut(qwen):
    """1 is no beginning of 12; `</answer>` keeps its own ids; white space around does not count."""
    one, twelve = (answer_tokens.encode_answer(qwen, text, END, 16) for text in ("1", "12"))
    assert one != twelve[: len(one)]
    assert qwen.decode(twelve) == "12</answer>"
    assert answer_tokens.encode_answer(qwen, " \n12\t", END, 16) == twelve
    assert answer_tokens.encode_answer(qwen, "12", END, 2) == twelve[:2]
    assert answer_tokens.encode_answer(qwen, " \n", END, 16) == []


@pytest.mark.parametrize("text", ["9" * 10**6, "-" * 1000, "1" + " " * 1000 + "2", "word " * 900])
def test_a_long_answer_is_told_by_its_first_tokens(qwen, text):
    """Also if a token has many characters: a longer answer is truncated, without a closing text."""
    width = 8
    start = encode(qwen, text[:5000])  # far more than `width` tokens
    assert answer_tokens.encode_answer(qwen, text, END, width) == start[:width]


# ------------------------------------------------------------------ postfix and boundaries


def test_answers_that_text_would_join_to_the_postfix_are_said(qwen):
    """`>-` is one token of Qwen's: in running text, the `-` of -5 merges with `<answer>`."""
    golds = ["5", "-5", "12", "-5", r"\frac{1}{2}"]
    apart = answer_tokens.tokenized_apart(qwen, "</think>\n<answer>", golds, 32)
    joined = [qwen.encode("<answer>" + gold) for gold in golds]
    alone = [qwen.encode("<answer>") + qwen.encode(gold) for gold in golds]
    want = [g for g, a, b in zip(golds, joined, alone, strict=True) if a != b]
    assert apart == list(dict.fromkeys(want)) and "-5" in apart and "12" not in apart


def test_a_postfix_that_the_tokenizer_cannot_write_is_refused(opened):
    """The arithmetic tokenizer drops letters that it has no token for."""
    with pytest.raises(UserError, match="encoding and decoding it gives '</think><answer>'"):
        probes.encode_postfix(opened.tokenizer, "</think>é<answer>")
    with pytest.raises(UserError, match="^eval.postfix is empty"):
        probes.encode_postfix(opened.tokenizer, "", "eval.postfix")
    for text in ("</think>\n<answer>", "<answer>", "\n"):
        ids = probes.encode_postfix(opened.tokenizer, text)
        assert opened.tokenizer.decode(ids) == text


def test_the_postfix_in_qwens_own_tokens(qwen):
    """`>` and the line end are one token; a postfix in another script comes back too."""
    ids = probes.encode_postfix(qwen, "</think>\n<answer>")
    assert [qwen.decode([i]) for i in ids] == ["</", "think", ">\n", "<", "answer", ">"]
    for text in ("\n\nFinal answer: \\boxed{", " 答案：", "🧮 é"):
        assert qwen.decode(probes.encode_postfix(qwen, text)) == text


def test_probes_stand_after_tokens_that_hold_a_text(opened):
    """Through `make_probe`: after "." within the thinking, and at its end; none after padding."""
    section = InformationSection(postfix="</think><answer>", boundaries=["."])
    mesh = make_mesh(1, 1, 1)
    probe_maker = probes.make_probe_maker(section, opened, mesh, ["49"])
    text = "<think>1+1=2. 2+2=4. 4+4=8</think><answer>8</answer>"
    ids = encode(opened.tokenizer, text)
    stops = [i + 1 for i, token in enumerate(ids) if "." in opened.tokenizer.decode([token])]
    thinking = ids.index(encode(opened.tokenizer, "</think>")[0])
    tokens = np.zeros((1, 3, len(ids) + 4), np.int32)
    tokens[:, :, : len(ids)] = ids
    length = np.array([[thinking, stops[0] + 1, 0]], np.int32)
    split = by_prompt(mesh)
    probe = probes.make_probe(
        probe_maker, put(tokens, split), put(length, split), ["49"], [[text] * 3]
    )
    want = [[0, *stops, thinking], [0, stops[0], stops[0] + 1], [0]]
    for row, count, index in zip(
        probe.positions.index[0], probe.positions.count[0], want, strict=True
    ):
        assert row[: int(count)].tolist() == index and set(row[int(count) :].tolist()) <= {
            index[-1]
        }


def test_a_dry_run_knows_the_places(opened):
    """Not the shapes alone: `abstract_probe` lies on the devices where `make_probe` puts it."""
    section = InformationSection(postfix="</think><answer>", estimator="answer_set_entropy")
    mesh = make_mesh(*MESHES[2])
    probe_maker = probes.make_probe_maker(section, opened, mesh, ["49"] * 4)
    split = by_prompt(mesh)
    tokens = put(np.zeros((4, 2, 10), np.int32), split)
    length = put(np.full((4, 2), 6, np.int32), split)
    made = probes.make_probe(probe_maker, tokens, length, ["49"] * 4, [[says("4"), says("5")]] * 4)
    told = probes.abstract_probe(probe_maker, (4, 2, 10))
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(told), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def test_auto_is_the_algorithms_own_estimator():
    """A named estimator stays; without an algorithm `auto` is the entropy of the answer."""
    auto, named = InformationSection(), InformationSection(estimator="answer_set_entropy")
    assert probes.settle(auto).estimator == "answer_entropy"
    assert probes.settle(auto, "answer_log_prob").estimator == "answer_log_prob"
    assert probes.settle(named, "answer_log_prob") is named
