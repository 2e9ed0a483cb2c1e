"""Sampling a dataset to its end: independent of the batch, and never a sample twice."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from before_jax import MESHES

from iapo_jax.data.problems import Problems
from iapo_jax.errors import UserError
from iapo_jax.evaluation import sampling as evaluation
from iapo_jax.evaluation.completions_file import (
    Completion,
    append_completions,
    cast_votes,
    read_completions,
)
from iapo_jax.evaluation.records import read_record
from iapo_jax.evaluation.sampling import Protocol, evaluate, make_task, missing_chunks
from iapo_jax.evaluation.stored_evaluation import describe, evaluate_to
from iapo_jax.model import checksums
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.runtime.locks import file_lock
from iapo_jax.sharding import make_mesh, param_shardings


class Letters:
    """Token i is the i-th letter."""

    def batch_decode(self, rows, skip_special_tokens, clean_up_tokenization_spaces):
        return [self.decode(row) for row in rows]

    def decode(self, row, clean_up_tokenization_spaces=False):
        return "".join(chr(ord("0") + int(i)) for i in row)

    def encode(self, text, add_special_tokens, verbose):
        return [ord(letter) - ord("0") for letter in text]


@pytest.fixture(scope="module")
def make(tiny_config, tiny_model):
    """`make(mesh, **changed)`: a task of 7 problems, rows 2 to 14 of a dataset, 4 samples each."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(2, tiny_config.vocab_size, n).tolist() for n in (3, 9, 1, 4, 4, 6, 2)]
    texts, rows = [f"q{i}" for i in range(7)], [2 * i + 2 for i in range(7)]
    problems = Problems(texts, tokens, ["1"] * 7, [{}] * 7, 0, texts, rows)

    def build(mesh=(1, 1, 1), problems=problems, **changed):
        opened = SimpleNamespace(
            config=tiny_config,
            tokenizer=Letters(),
            stop_ids=[1, 2, 3],
            allowed=np.ones(tiny_config.vocab_size, bool),
        )
        loaded = LoadedModel(mesh=make_mesh(*mesh), pretrained=opened, model=tiny_model)
        fields = dict(
            seed=5,
            num_samples=4,
            max_completion_length=12,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            end_of_thinking=["</think>"],
            prompts_per_batch=7,
        )
        return make_task(loaded, problems, Protocol(**(fields | changed)), field="eval")

    return build


@pytest.fixture(scope="module")
def whole(make, tiny_params):
    """Everything in one batch."""
    return evaluate(make(), tiny_params, name="whole", shown=False)


def by_place(completions):
    return {(one.row, one.sample): one for one in completions}


def test_every_sample_of_every_problem_is_there_once(whole):
    assert sorted(by_place(whole)) == [(row, n) for row in range(2, 15, 2) for n in range(4)]
    assert len(whole) == 28
    assert all(1 <= one.length <= 12 for one in whole)
    assert all(one.length == 12 for one in whole if not one.finished)
    assert len({one.completion for one in whole}) > 20  # random tokens differ
    assert not any(one.correct for one in whole)


@pytest.mark.parametrize(
    "mesh, batch",
    [
        ((1, 1, 1), dict(prompts_per_batch=2)),
        ((1, 1, 1), dict(prompts_per_batch=3, samples_per_batch=1)),
        ((1, 1, 1), dict(prompts_per_batch=5, samples_per_batch=3)),
        (MESHES[1], dict(prompts_per_batch=8)),
    ],
)
def test_the_batch_and_the_mesh_do_not_change_the_result(make, tiny_params, whole, mesh, batch):
    task = make(mesh, **batch)
    params = jax.device_put(tiny_params, param_shardings(task.loaded.mesh, tiny_params))
    assert by_place(evaluate(task, params, name="", shown=False)) == by_place(whole)


def test_fewer_samples_are_the_first_of_more(make, tiny_params, whole):
    few = evaluate(make(num_samples=2), tiny_params, name="", shown=False)
    assert by_place(few) == {place: one for place, one in by_place(whole).items() if place[1] < 2}


def test_a_problem_draws_the_same_beside_others(make, tiny_params, whole):
    task = make()

    def pick(x):
        return [x[4], x[1]]

    problems = Problems(*(v if isinstance(v, int) else pick(v) for v in task.problems))
    made = evaluate(make(problems=problems), tiny_params, name="", shown=False)
    assert by_place(made) == {p: one for p, one in by_place(whole).items() if p[0] in (4, 10)}


def test_seeds_differ(make, tiny_params, whole):
    other = evaluate(make(seed=6), tiny_params, name="", shown=False)

    def texts(many):
        return [one.completion for one in many]

    assert texts(other) != texts(whole)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 4])
def test_missing_chunks_cover_what_is_missing(seed, size):
    known = np.random.default_rng(seed).random((6, 4)) < 0.6
    covered = known.copy()
    for problem, first in missing_chunks(known, size):
        assert not known[problem, first]
        covered[problem, first : first + size] = True
    assert covered.all()
    assert missing_chunks(np.ones((6, 4), bool), size) == []


# --------------------------------------------------------------------------- on disk


class Stop(Exception):
    """An interruption."""


@pytest.fixture
def stored(make, tiny_params, tmp_path, monkeypatch):
    """`stored(stop_after=None, **changed)`: `evaluate_to`, and how many samples it drew."""
    drawn = []
    original = evaluation.sample_chunks

    def run(stop_after=None, replace=False, mesh=(1, 1, 1), **changed):
        drawn.clear()

        def sample(task, params, chunks):
            for number, made in enumerate(original(task, params, chunks)):
                if number == stop_after:
                    raise Stop
                drawn.extend((one.row, one.sample) for one in made)
                yield made

        monkeypatch.setattr(evaluation, "sample_chunks", sample)
        task = make(mesh, **changed)
        record = describe(task, tiny_params, model="tiny", dataset="letters")
        return evaluate_to(
            tmp_path, "tiny.letters", task, tiny_params, record, replace=replace, shown=False
        )

    run.drawn, run.directory = drawn, tmp_path
    return run


def test_an_interrupted_evaluation_draws_only_what_is_missing(stored, whole):
    with pytest.raises(Stop):
        stored(stop_after=2, prompts_per_batch=2)
    assert len(stored.drawn) == 16
    first = list(stored.drawn)
    assert not read_record(stored.directory / "tiny.letters.json").complete
    record = stored(prompts_per_batch=3, samples_per_batch=3)
    assert len(stored.drawn) == 12 and not set(first) & set(stored.drawn)
    lines = read_completions(stored.directory / "tiny.letters.completions.jsonl")
    assert by_place(lines) == by_place(whole) and len(lines) == 28
    assert record == read_record(stored.directory / "tiny.letters.json")
    places = by_place(whole)
    assert record.rows == [2, 4, 6, 8, 10, 12, 14]
    assert record.length == [[places[row, n].length for n in range(4)] for row in record.rows]
    assert record.finished == [[places[row, n].finished for n in range(4)] for row in record.rows]
    stored()
    assert stored.drawn == []


def test_more_samples_draw_only_the_new_ones(stored, whole):
    stored(num_samples=1)
    assert len(stored.drawn) == 7
    record = stored(num_samples=4)
    assert len(stored.drawn) == 21
    lines = read_completions(stored.directory / "tiny.letters.completions.jsonl")
    assert by_place(lines) == by_place(whole)
    assert np.shape(record.correct) == (7, 4)
    assert np.shape(stored(num_samples=2).correct) == (7, 2)
    assert stored.drawn == []


def test_a_half_written_line_is_drawn_again(stored, whole):
    stored()
    path = stored.directory / "tiny.letters.completions.jsonl"
    path.write_bytes(path.read_bytes()[:-25])
    stored()
    assert stored.drawn == [(14, 3)]
    lines = read_completions(path)
    assert by_place(lines) == by_place(whole) and len(lines) == 28


def test_another_evaluation_is_refused_or_replaced(stored):
    stored()
    with pytest.raises(UserError, match="temperature was 1.0 and is now 0.5; use another"):
        stored(temperature=0.5)
    assert stored.drawn == []
    stored(temperature=0.5, replace=True)
    assert len(stored.drawn) == 28


def test_another_model_is_refused(stored, make, tiny_params):
    stored()
    task = make()
    changed = jax.tree.map(lambda x: x, tiny_params)
    leaves, tree = jax.tree.flatten(changed)
    leaves[0] = leaves[0].at[(0,) * leaves[0].ndim].add(1e-6)
    changed = jax.tree.unflatten(tree, leaves)
    record = describe(task, changed, model="tiny", dataset="letters")
    with pytest.raises(UserError, match="its model has different parameters"):
        evaluate_to(stored.directory, "tiny.letters", task, changed, record, shown=False)


def test_damaged_files_are_named(stored):
    stored()
    texts = stored.directory / "tiny.letters.completions.jsonl"
    lines = texts.read_text().splitlines()
    texts.write_text("\n".join([lines[0], "{}", *lines[2:]]) + "\n")
    with pytest.raises(UserError, match="letters.completions.jsonl, line 2: 'row' is missing"):
        stored()
    (stored.directory / "tiny.letters.json").write_text("{")
    with pytest.raises(UserError, match="tiny.letters.json is not JSON"):
        stored()
    (stored.directory / "tiny.letters.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="format is 7; expected an evaluation of format 1"):
        stored()
    (stored.directory / "tiny.letters.json").unlink()
    with pytest.raises(UserError, match="has no tiny.letters.json beside it"):
        stored()


@pytest.mark.parametrize(
    "line",
    ["5", "null", '"text"', "[1, 2]"],
)
def test_a_line_that_is_no_object_is_named(stored, line):
    stored()
    texts = stored.directory / "tiny.letters.completions.jsonl"
    texts.write_text(line + "\n")
    with pytest.raises(UserError, match="line 1 is .*; expected an object"):
        stored()


@pytest.mark.parametrize("name, value", [("length", "abc"), ("correct", 1.5), ("row", None)])
def test_a_field_of_another_kind_is_named(stored, name, value):
    stored()
    texts = stored.directory / "tiny.letters.completions.jsonl"
    first, *others = texts.read_text().split("\n")
    texts.write_text("\n".join([json.dumps(json.loads(first) | {name: value}), *others]))
    with pytest.raises(UserError, match=f"line 1: {name} is .*; expected"):
        stored()
    path = stored.directory / "tiny.letters.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": None}))
    with pytest.raises(UserError, match="settings is None; expected an object"):
        stored()


def test_one_process_at_a_time(stored):
    stored()
    texts = stored.directory / "tiny.letters.completions.jsonl"
    before = texts.read_bytes()
    lock = stored.directory / "tiny.letters.lock"
    with (
        file_lock(lock, instead="x"),
        pytest.raises(UserError, match="is in use by another process"),
    ):
        stored()
    assert texts.read_bytes() == before
    stored()


def test_what_cannot_be_written_is_one_sentence(make, tiny_params, tmp_path):
    (tmp_path / "tiny.letters.completions.jsonl").mkdir()
    task = make()
    record = describe(task, tiny_params, model="tiny", dataset="letters")
    with pytest.raises(UserError, match="cannot be written"):
        evaluate_to(tmp_path, "tiny.letters", task, tiny_params, record, shown=False)


def test_a_batch_must_fit_the_devices(make):
    with pytest.raises(
        UserError, match="eval.prompts_per_batch is 7; .* multiple of ., the number"
    ):
        make(MESHES[0], prompts_per_batch=7)


def test_the_fingerprint_is_of_every_bit_and_of_no_mesh(tiny_params):
    one = checksums.fingerprint(tiny_params)
    split = jax.device_put(tiny_params, param_shardings(make_mesh(*MESHES[2]), tiny_params))
    assert checksums.fingerprint(split) == one
    for leaf in range(len(jax.tree.leaves(tiny_params))):
        leaves, tree = jax.tree.flatten(tiny_params)
        host = np.asarray(leaves[leaf]).copy()
        host.ravel()[-1] = np.nextafter(host.ravel()[-1], np.float32(np.inf))
        leaves[leaf] = host
        assert checksums.fingerprint(jax.tree.unflatten(tree, leaves)) != one
    swapped, tree = jax.tree.flatten(tiny_params)
    swapped[0] = np.asarray(swapped[0])[::-1].copy()
    assert checksums.fingerprint(jax.tree.unflatten(tree, swapped)) != one


# ------------------------------------------------------------------------------ votes


def sample(extracted, correct=False):
    return Completion(0, 0, "", "", "12", extracted, correct, 1, 1, True)


def test_votes_by_hand():
    group = [
        sample("12", True),
        sample("13"),
        sample(None),
        sample("13.0"),
        sample("1/2"),
        sample("12.00", True),
        sample("0.5"),
        sample(""),
    ]
    assert cast_votes(group) == [0, 1, -1, 1, 2, 0, 2, -1]


def test_a_completion_survives_the_file(tmp_path):
    path = tmp_path / "x.completions.jsonl"
    odd = Completion(3, 1, "é\u2028\n", "\\u0000 \ud800 <b>", "½", None, False, 5, 4, False, [1, 2])
    append_completions(path, [odd, odd._replace(ids=[])])
    first, second = read_completions(path)
    assert first._replace(completion="") == odd._replace(completion="")
    assert second.ids == [] and "ids" not in json.loads(path.read_text().split("\n")[1])
