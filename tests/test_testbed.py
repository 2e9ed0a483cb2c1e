"""The experiment's settings: what is generated is true, labeled, disjoint, and read back."""

import functools
import hashlib
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import transformers

from iapo_jax.model.decoder import param_shapes
from iapo_jax.pretrained.architecture import decoder_config

pytestmark = pytest.mark.nightly

FOLDER = Path(__file__).parents[1] / "experiments" / "arithmetic"
PUBLISHED = ("chain", "easy", "hard", "growing")
SETTINGS = (*PUBLISHED, "large")  # of which nothing is published, since it needs a GPU
SIZES = {"chain": 844_768, "easy": 1_253_056, "hard": 1_253_056, "growing": 844_768}
"""Bytes of the published initial models, as the experiment's README lists them."""
N = 400


@pytest.fixture(scope="module")
def bed():
    """The testbed's modules by name (`experiments` is no package)."""
    names = ("testbed.settings", "testbed.pieces", "testbed.categories", "testbed.nested")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {
            name.rpartition(".")[2]: importlib.import_module(name)
            for name in (*names, "tokenizer", "make_testbed", "sweep.problems")
        }
        ours = ("testbed", "tokenizer", "sweep")
        for name in [n for n in sys.modules if n.partition(".")[0] in ours]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def problems_of(bed):
    """`settings.problems_of` of a setting's name and a split; each is drawn once."""
    module = bed["settings"]
    return functools.cache(lambda name, split: module.problems_of(module.SETTINGS[name], split))


@pytest.fixture(scope="module")
def drawn(bed):
    """Problems of each setting with worked reasoning: {name: [(problem, pieces)]}."""
    found = {}
    for name in SETTINGS:
        setting, rng = bed["settings"].SETTINGS[name], np.random.default_rng(0)
        problems = [setting.draw(rng) for _ in range(N)]
        found[name] = [(p, bed["settings"].draw_reasoning(rng, setting, p)) for p in problems]
    return found


def is_true(equation):
    """`a=b=c`, every side worked out by Python; a digit sum's parity as `4:1` is not one."""
    values = {eval(side) for side in equation.split("=")}  # noqa: S307
    return len(values) == 1


@pytest.mark.parametrize("name", ["easy", "hard", "large"])
def test_answers_and_equations_are_true(drawn, name):
    for problem, pieces in drawn[name]:
        assert int(problem.answer) == eval(problem.question)  # noqa: S307
        text = "".join(piece.text for piece in pieces)
        equations = re.findall(r"[0-9+\-*()]+(?:=[0-9+\-*()]+)+", text)
        assert len(equations) >= len(problem.steps) and all(map(is_true, equations))
        for step in problem.steps:
            assert all(map(is_true, filter(None, (step.text, step.check, step.long))))
            assert not step.left or eval(step.left) == int(problem.answer)  # noqa: S307
            numbers = list(map(int, re.findall(r"\d+", step.text)))
            assert all(2 <= n <= (59 if name == "easy" else 499) for n in numbers)


def test_sums_modulo_ten(drawn):
    for problem, _ in drawn["chain"]:
        digits = list(map(int, problem.question.split("+")))
        assert int(problem.answer) == sum(digits) % 10
        results = [int(step.text[-1]) for step in problem.steps]
        assert results == [sum(digits[: n + 2]) % 10 for n in range(len(digits) - 1)]


def test_parity_and_rare_full_reasoning(drawn):
    full = glance = 0
    for problem, pieces in drawn["growing"]:
        digits = list(map(int, problem.question))
        assert int(problem.answer) == sum(digits) % 2
        states = [int(step.text[-1]) for step in problem.steps]
        assert states == [sum(digits[: n + 1]) % 2 for n in range(len(digits))]
        needed = sum(piece.category == "needed" for piece in pieces)
        full += needed == len(digits)
        glance += needed == 0
    assert 0.07 < full / N < 0.17 and 0.33 < glance / N < 0.47


def test_products_are_worked_in_detail_only_where_the_level_says_so(bed, drawn):
    assert not any(step.long for problem, _ in drawn["easy"] for step in problem.steps)
    steps = [step for problem, _ in drawn["hard"] for step in problem.steps if step.long]
    assert steps and all(step.long.startswith(step.text.partition("=")[0]) for step in steps)
    assert all(step.long.endswith("=" + step.text.partition("=")[2]) for step in steps)
    assert any("(" in problem.question for problem, _ in drawn["easy"])
    rng = np.random.default_rng(1)
    longer = [bed["settings"].SETTINGS["hard"].longer(rng) for _ in range(50)]
    longest = max(len(problem.steps) for problem, _ in drawn["hard"])
    assert all(len(problem.steps) > longest for problem in longer)


@pytest.mark.parametrize("name", SETTINGS)
def test_categories_are_read_back_from_the_text(bed, drawn, name):
    """The oracle is the generator, which knows them; also of reasoning that is cut."""
    split, rng = bed["pieces"].split_tokens, np.random.default_rng(2)
    for problem, pieces in drawn[name]:
        labels = [piece.category for piece in pieces for _ in split(piece.text)]
        tokens = split(bed["pieces"].join(pieces))
        assert bed["categories"].categorize(problem, tokens) == labels
        cut = int(rng.integers(0, len(tokens) + 1))
        read = bed["categories"].categorize(problem, tokens[:cut])
        assert len(read) == cut
        ended = max((i + 1 for i, t in enumerate(tokens[:cut]) if t.startswith(".")), default=0)
        assert read[:ended] == labels[:ended]


def test_what_no_piece_is_counts_as_wrong(bed):
    problem = bed["nested"].draw_problem(np.random.default_rng(0), bed["nested"].EASY)

    def read(text):
        return bed["categories"].categorize(problem, bed["pieces"].split_tokens(text))

    first = problem.steps[0].text
    assert set(read("1+1=7. ")) == {"wrong"} and set(read("= = 4")) == {"wrong"}
    assert read(f"{first}. {first}. ") == ["needed"] * (len(first) + 1) + ["second"] * (
        len(first) + 1
    )
    assert read("") == []


def test_a_step_that_was_left_out_makes_no_other_redundant(bed):
    problem = bed["nested"].draw_problem(np.random.default_rng(0), bed["nested"].EASY)
    split = bed["pieces"].split_tokens

    def read(text):
        return bed["categories"].categorize(problem, split(text))

    first, *others = problem.steps
    assert others
    assert set(read("".join(f"{step.text}. " for step in others))) == {"needed"}
    swapped = f"{others[0].text}. {first.text}."  # also where the last full stop has no space
    assert set(read(swapped)) == {"needed"}
    assert set(read(f"again {first.check}. ok {first.text}. ")) == {"second", "filler"}


@pytest.mark.parametrize(
    "text",
    ["check 1+1=7", "left 9+9", "we need 5-5", "again 3+3=1", "the answer is 999", "so it is"],
)
def test_what_is_not_of_this_problem_is_wrong(bed, text):
    problem = bed["nested"].draw_problem(np.random.default_rng(0), bed["nested"].EASY)
    tokens = bed["pieces"].split_tokens(f"{text}. ")
    assert set(bed["categories"].categorize(problem, tokens)) == {"wrong"}


@pytest.mark.parametrize("name", SETTINGS)
def test_everything_fits_and_verbosity_zero_is_the_shortest_chain(bed, drawn, name):
    setting = bed["settings"].SETTINGS[name]
    assert all(bed["pieces"].count_tokens(p) <= setting.max_length - 8 for _, p in drawn[name])
    bare = setting._replace(work=None, habits=setting.habits._replace(long=(0.0, 0.0)))
    problem = drawn[name][0][0]
    pieces = bed["settings"].draw_reasoning(np.random.default_rng(0), bare, problem, 0.0)
    assert [p.text for p in pieces] == [f"{step.text}. " for step in problem.steps]


@pytest.mark.parametrize("name", SETTINGS)
def test_no_question_is_in_two_splits_or_in_the_supervised_rows(bed, problems_of, name):
    module = bed["settings"]
    setting = module.SETTINGS[name]
    sizes = module.splits_of(setting)
    last = [split for split in ("test", "longer") if setting.tried and split in sizes]
    first = [set(problems_of(name, split)) for split in sizes if split not in last]
    questions = set().union(*first)
    rows = list(module.supervised_rows(setting, 300, questions))
    practiced = {row["question"] for row in rows}
    assert len(rows) == 300 and not questions & practiced
    found = first + [set(module.problems_of(setting, s, practiced=practiced)) for s in last]
    questions = set().union(*found)
    assert len(questions) == sum(map(len, found)) == sum(sizes.values())
    assert len(sizes) == {"hard": 6, "growing": 4}.get(name, 3) and not questions & practiced
    whole = [row for row in rows if row["completion"][-1][0].startswith("<")]
    cut = [row for row in rows if [bed["pieces"].EXIT, 0] in row["completion"]]
    assert 0.2 < len(cut) / 300 < 0.36 and len(whole) == 300 - len(cut)
    for row in rows:
        assert row["completion"][-1][0].endswith(f"{row['answer']}</answer>")


def digest(bed, problems):
    """The digest of the file that make_testbed.py writes for them."""
    rows = [{"question": one.question, "answer": one.answer} for one in problems]
    return hashlib.sha256("".join(json.dumps(row) + "\n" for row in rows).encode()).hexdigest()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_problems_are_those_of_the_published_results(bed, problems_of, name):
    module, setting = bed["settings"], bed["settings"].SETTINGS[name]
    for split in module.splits_of(setting):
        if split in ("test", "longer") and setting.tried:
            continue  # which exclude the supervised rows: the next test draws them
        problems = problems_of(name, split)
        expected = bed["problems"].published()[f"data/{name}/{split}.jsonl"]
        assert digest(bed, problems.values()) == expected
        assert module.problems_by_question(setting, split, list(problems)) == problems


@pytest.mark.parametrize("name", ["hard", "growing"])
def test_the_last_problems_are_those_of_the_published_results(bed, name, tmp_path):
    """Drawn as make_testbed.py draws them: after the supervised rows, without their questions."""
    module, setting = bed["settings"], bed["settings"].SETTINGS[name]
    bed["make_testbed"].write_splits(setting, tmp_path, tmp_path / "sft.jsonl", name)
    seen: set[str] = set()
    lengths = {}
    for split, size in module.splits_of(setting).items():
        path = tmp_path / f"{split}.jsonl"
        assert (
            bed["problems"].sha256(path) == bed["problems"].published()[f"data/{name}/{path.name}"]
        )
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        answers = {row["question"]: row["answer"] for row in rows}
        problems = module.problems_by_question(setting, split, list(answers))
        assert {q: one.answer for q, one in problems.items()} == answers
        assert len(answers) == len(rows) == size and not seen & set(answers)
        seen.update(answers)
        lengths[split] = Counter(map(len, answers))
    # Few questions are left that are as short as the rarest of the selection split.
    assert (lengths["test"] - lengths["select"]).total() < 10
    with (tmp_path / "sft.jsonl").open() as file:
        assert not seen & {json.loads(line)["question"] for line in file}


def test_a_question_that_the_split_does_not_have(bed, monkeypatch):
    module = bed["settings"]
    monkeypatch.setattr(module, "_MOST_DRAWS", 2000)
    small = module.SETTINGS["chain"]
    with pytest.raises(ValueError, match="'1\\+1' is not a problem of the split 'test'"):
        module.problems_by_question(small, "test", ["1+1"])


def test_the_large_setting_is_large(bed, drawn, tmp_path):
    """10 to 30 M parameters, reasoning of 200 to 500 tokens, questions that fit."""
    setting = bed["settings"].SETTINGS["large"]
    assert set(bed["settings"].SMALL) == set(PUBLISHED)
    lengths = [bed["pieces"].count_tokens(pieces) for _, pieces in drawn["large"]]
    assert 200 < np.mean(lengths) < 500 and max(lengths) <= 376
    assert max(len(problem.question) for problem, _ in drawn["large"]) < setting.max_prompt - 8
    path = tmp_path / "config.json"
    bed["make_testbed"].write_model_config(setting, path)
    shapes = param_shapes(decoder_config(json.loads(path.read_text())))
    assert 10e6 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 30e6


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_architecture_is_that_of_the_published_model(bed, name, tmp_path):
    """Its weights fill the published file but for a header."""
    path = tmp_path / "config.json"
    bed["make_testbed"].write_model_config(bed["settings"].SETTINGS[name], path)
    shapes = param_shapes(decoder_config(json.loads(path.read_text())))
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 0 < SIZES[name] - size < 10_000


def test_an_unknown_split(bed):
    with pytest.raises(ValueError, match="split is 'longer'; expected one of train, select, test"):
        bed["settings"].problems_of(bed["settings"].SETTINGS["easy"], "longer")


@pytest.fixture(scope="module")
def tokenizer(bed, tmp_path_factory):
    """The tokenizer of every initial model, as transformers opens it beside a config of Qwen2."""
    place, made = tmp_path_factory.mktemp("tokenizer"), bed["make_testbed"]
    bed["tokenizer"].save_tokenizer(place, made.TESTBED_WORDS, made.TESTBED_SYMBOLS)
    made.write_model_config(bed["settings"].SETTINGS["chain"], place / "config.json")
    return transformers.AutoTokenizer.from_pretrained(place)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_models_tokenizer_splits_as_the_generator_does(bed, drawn, tokenizer, name):
    for problem, pieces in drawn[name][:100]:
        text = bed["pieces"].join(pieces)
        assert tokenizer.tokenize(text) == [
            token.replace(" ", "Ġ") if token == " " else token
            for token in bed["pieces"].split_tokens(text)
        ]
        assert tokenizer.decode(tokenizer.encode(problem.question)) == problem.question
        assert len(tokenizer.tokenize(problem.question)) == len(problem.question) <= 28


def test_a_tag_within_the_reasoning_is_one_token(bed, tokenizer):
    """As a briefly trained model writes it."""
    text = "3:1. <user>3:1. <think>so it is 0. "
    assert len(tokenizer.tokenize(text)) == len(bed["pieces"].split_tokens(text)) == 15


def test_wrong_settings_are_one_sentence(bed, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_testbed.py", "medium"])
    with pytest.raises(SystemExit) as stopped:
        bed["make_testbed"].main()
    assert stopped.value.code == 2
    assert "unknown setting 'medium'; expected one of chain, easy" in capsys.readouterr().err
