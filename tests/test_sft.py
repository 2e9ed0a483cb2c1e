"""Supervised fine-tuning of a new tiny model: the loss, its masks, batches, whole runs."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from before_jax import DEVICES, MESHES
from conftest import plain_logits
from tiny_runs import ARCHITECTURE, arithmetic_tokenizer, mesh_words

from iapo_jax import sft
from iapo_jax.config.loading import load_config, to_yaml
from iapo_jax.config.sections import OptimizerSection
from iapo_jax.config.sft import SftConfig
from iapo_jax.data import problems as data
from iapo_jax.data.demonstrations import Demonstrations, SftBatch, encode_completion
from iapo_jax.errors import UserError
from iapo_jax.pretrained import architecture as architecture_module
from iapo_jax.pretrained import tokenization, weights
from iapo_jax.runtime.files import read_jsonl
from iapo_jax.sft import sft_step, train_sft
from iapo_jax.sharding import fetch, make_mesh
from iapo_jax.training import optimizer as update
from iapo_jax.types import Prompts

# Sums of two digits; every fourth row leaves early: the exit postfix is masked.
ROWS = [
    {
        "question": f"{a}+{b}",
        "completion": f"{a}+{b}={a + b}</think><answer>{a + b}</answer>"
        if (a + b) % 4
        else [[f"{a}+", 1], ["</think><answer>", 0], [f"{a + b}</answer>", 1.0]],
    }
    for a in range(4)
    for b in range(6)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, root):
    """A folder with an architecture, a tokenizer and ROWS."""
    folder = tmp_path_factory.mktemp("sft")
    arithmetic_tokenizer(root).save_pretrained(folder / "tokenizer")
    architecture = ARCHITECTURE | {"initializer_range": 0.02}
    (folder / "config.json").write_text(json.dumps(architecture))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture(scope="module")
def tokenizer(world):
    return tokenization.load_tokenizer(world / "tokenizer")


@pytest.fixture(scope="module")
def configure(world):
    def build(output_dir, *overrides):
        base = [
            f"output_dir={output_dir}",
            f"model.config={world / 'config.json'}",
            f"model.tokenizer={world / 'tokenizer'}",
            f"data.dataset={world / 'rows.jsonl'}",
            "max_steps=40",
            "save_steps=20",
            "batch.rows_per_step=8",
            "optimizer.learning_rate=1e-2",
            "optimizer.lr_scheduler_type=constant",
            "optimizer.adam_epsilon=1e-3",  # see test_train.py: rounding must not become a step
            "mesh.data=1",
            "log.compilation_cache=''",
            "log.progress=false",
            "log.tensorboard=false",
        ]
        return load_config(SftConfig, None, [*base, *overrides])

    return build


@pytest.fixture(scope="module")
def finish(configure, tmp_path_factory):
    def run(*overrides, directory=None):
        directory = directory or tmp_path_factory.mktemp("run")
        state = train_sft(configure(directory, *overrides))
        rows = read_jsonl(directory / "metrics.jsonl")
        return SimpleNamespace(directory=directory, params=fetch(state.params), rows=rows)

    return run


@pytest.fixture(scope="module")
def straight(finish):
    return finish()


def losses(run):
    return [row["loss"] for row in run.rows]


def test_the_loss_falls(straight):
    # The first loss is that of a nearly uniform guess among 64 tokens: log 64 = 4.16 nats.
    assert losses(straight)[0] == pytest.approx(np.log(64), abs=0.2)
    assert np.mean(losses(straight)[-5:]) < 1.5
    assert len({row["compiles"] for row in straight.rows[1:]}) == 1


def test_a_run_writes_its_directory(straight):
    found = {path.name for path in straight.directory.iterdir()}
    assert found == {"config.yaml", "env.json", "metrics.jsonl", "checkpoints", "hf", ".lock"}
    config = architecture_module.decoder_config(ARCHITECTURE)
    loaded = fetch(weights.load_params(straight.directory / "hf", config))
    jax.tree.map(np.testing.assert_array_equal, loaded, straight.params)
    assert tokenization.load_tokenizer(straight.directory / "hf").eos_token == "<eos>"


def test_a_resumed_run_is_the_same_bit_for_bit(straight, finish):
    half = finish("max_steps=20")
    resumed = finish(directory=half.directory)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
    assert losses(resumed) == losses(straight)


def test_micro_batches_and_devices_change_nothing(straight, finish):
    cut_up = ["batch.micro_batch_size=4", *mesh_words(MESHES[2])]
    run = finish("max_steps=6", "save_steps=0", *cut_up)
    for row, expected in zip(run.rows, straight.rows, strict=False):
        for name in ("loss", "grad_norm", "entropy", "num_tokens"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4), (row["step"], name)
    assert len(run.rows) == 6


# ------------------------------------------------------------------------------------ rows


def test_a_text_is_encoded_whole_and_ended(tokenizer):
    ids, weights = encode_completion(tokenizer, "1+2=3</think>", "here")
    assert tokenizer.decode(ids) == "1+2=3</think><eos>"
    assert weights == [1.0] * len(ids)


def test_the_postfix_of_an_early_answer_has_no_weight(tokenizer):
    pieces = [["1+", 1], ["</think><answer>", 0], ["3</answer>", 0.5]]
    ids, weights = encode_completion(tokenizer, pieces, "here")
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *("1", "+", "</think>", "<answer>", "3", "</answer>", "<eos>")
    ]
    assert weights == [1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 1.0]


@pytest.mark.parametrize("wrong", [5, None, [["a", 1], "b"], [["a"]], [[1, "a"]], {"a": 1}])
def test_a_wrong_completion_is_named(tokenizer, wrong):
    with pytest.raises(
        UserError, match=r"row 3: `completion` contains .*; expected a string or a list"
    ):
        encode_completion(tokenizer, wrong, "rows, row 3")


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "1", None])
def test_a_wrong_weight_is_named(tokenizer, weight):
    with pytest.raises(UserError, match=r"rows, row 3: `completion` has the weight .*; expected"):
        encode_completion(tokenizer, [["a", 1], ["b", weight]], "rows, row 3")


def test_rows_that_are_all_too_long_are_an_error(configure, tmp_path, tokenizer):
    with pytest.raises(UserError) as caught:
        Demonstrations(configure(tmp_path, "batch.max_length=2"), tokenizer)
    assert "none of the 24 rows fits data.max_prompt_length (512) and batch.max_length (2)" in str(
        caught.value
    )
    assert "the shortest completion 7" in str(caught.value)


def test_a_tokenizer_must_end_a_completion(configure, tmp_path):
    with pytest.raises(UserError, match="has no eos_token"):
        Demonstrations(configure(tmp_path), SimpleNamespace(eos_token_id=None))


def test_rows_that_are_too_long_have_no_weight(configure, tmp_path, tokenizer):
    config = configure(tmp_path, "batch.max_length=9", "data.max_rows=8")
    rows = Demonstrations(config, tokenizer)
    batch = rows.batch(0)
    assert batch.tokens.shape == batch.weight.shape == (8, 1, 9)
    # Of the first 8 rows the early answers 0+0, 0+4 and no other fit into 9 tokens.
    short = [isinstance(ROWS[i]["completion"], list) for i in rows.order(0)]
    assert ((batch.weight.sum((1, 2)) > 0) == short).all() and any(short)
    assert rows.left_out == 8 - sum(short)
    assert rows.batch(1) and rows.left_out == 8 - sum(short)  # rows, and not times
    long = [i + 1 for i in range(8) if not isinstance(ROWS[i]["completion"], list)]
    first = ", ".join(map(str, long[:5]))
    assert rows.describe_left_out() == (
        f"{config.data.dataset}, rows {first} and {len(long) - 5} more: the prompt is longer than "
        "data.max_prompt_length (512) or the completion is longer than batch.max_length (9)"
    )
    with pytest.raises(UserError, match=rf"rows {first} .*; data.strict=true does not allow"):
        Demonstrations(configure(tmp_path, "batch.max_length=9", "data.strict=true"), tokenizer)


def test_rows_that_are_there_twice_are_said(configure, tmp_path, tokenizer):
    other = {**ROWS[0], "completion": "another"}  # of the same question: no repetition
    rows = [*ROWS, other, ROWS[2], ROWS[0]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = f"data.dataset={tmp_path / 'rows.jsonl'}"
    told = (
        "2 of 27 rows repeat the question and completion of an earlier row, for example rows 3 "
        "and 26"
    )
    assert Demonstrations(configure(tmp_path, place), tokenizer).notes == [
        f"{tmp_path}/rows.jsonl: {told}"
    ]
    with pytest.raises(UserError, match=rf"{told}; data.strict=true does not allow repeated rows"):
        Demonstrations(configure(tmp_path, place, "data.strict=true"), tokenizer)
    assert Demonstrations(configure(tmp_path, "data.strict=true"), tokenizer).notes == []


@pytest.mark.parametrize(
    "row, sentence",
    [
        ({"question": "1+1"}, "row 1: there is no column `completion`; the columns are question"),
        ({"completion": "2"}, "row 1: there is no column `prompt` or `question`; the columns are"),
        ({"prompt": 5, "completion": "2"}, "the question is 5; expected a non-empty string"),
        ({"prompt": ["5"], "completion": "2"}, "expected chat messages"),
        ({"prompt": "5", "completion": [["a", -1]]}, "has the weight -1"),
        ({"prompt": " ", "completion": "2"}, "the question is empty: ' '"),
        ({"prompt": "5", "completion": ""}, "`completion` is ''; expected text that is not"),
        ({"prompt": "5", "completion": []}, "`completion` is []; expected text that is not"),
        ({"prompt": "5", "completion": [[" ", 1]]}, "`completion` is [[' ', 1]]; expected text"),
    ],
)
def test_a_wrong_row_is_named(configure, tmp_path, row, sentence):
    # The last row of the file, of which the first step would not ask.
    rows = [*ROWS, row] if "row 1:" not in sentence else [row]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        train_sft(configure(tmp_path / "run", f"data.dataset={tmp_path / 'rows.jsonl'}"))
    assert sentence in str(caught.value) and f"row {len(rows)}:" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (
            "batch.micro_batch_size=3",
            "size is 3; expected a divisor of 8, the number of rows",
        ),
        (
            f"mesh.data={DEVICES} batch.micro_batch_size=1",
            f"a multiple of {DEVICES}, the number of",
        ),
        ("model.tokenizer=null", "model.tokenizer is empty; expected"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1.0; expected at least 0"),
        ("batch.rows_per_step=0", "batch.rows_per_step is 0; expected at least 1"),
        ("resume=3", "checkpoints has no checkpoints"),
    ],
)
def test_a_wrong_config_is_one_sentence(configure, tmp_path, overrides, sentence):
    with pytest.raises(UserError) as caught:
        train_sft(configure(tmp_path / "run", *overrides.split()))
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_cannot_end_before_the_step_it_resumes_from(configure, straight, monkeypatch):
    monkeypatch.setattr(sft, "initial_params", lambda *_: pytest.fail("weights were loaded"))
    written = (straight.directory / "config.yaml").read_text()
    with pytest.raises(UserError, match="max_steps is 30, but the run would resume from step 40"):
        train_sft(configure(straight.directory, "max_steps=30"))
    with pytest.raises(UserError, match="resume is never, but"):
        train_sft(configure(straight.directory, "max_steps=50", "resume=never"))
    assert (straight.directory / "config.yaml").read_text() == written


def test_a_dry_run_writes_nothing(configure, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(configure(tmp_path / "run")))
    assert sft.main(["--config", str(path), "--dry_run"]) == 0
    memory = capsys.readouterr().out.splitlines()[-1].split()
    assert memory[0] == "update" and all(float(size) > 0 for size in memory[1:])
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------ loss


def by_brute_force(model, params, rows):
    """- sum w log p / sum w, one whole sequence after the other; masked tokens never enter."""
    total, count = 0.0, 0.0
    for prompt, tokens, row_weights in rows:
        sequence = jnp.asarray([*prompt, *tokens])
        sequence = jnp.pad(sequence, (0, 12 - len(sequence)))[None]  # one program for all
        log_p = jax.nn.log_softmax(plain_logits(model, params, sequence)[0])
        for t, (token, weight) in enumerate(zip(tokens, row_weights, strict=True)):
            if weight:
                total = total - weight * log_p[len(prompt) + t - 1, token]
                count += weight
    return total / count


@pytest.fixture(scope="module")
def one_step(tiny_model, tiny_params):
    """`one_step(batch)`: the state and metrics after one update of the tiny model."""
    mesh, optimizer = make_mesh(1, 1, 1), update.make_optimizer(OptimizerSection(), 1)

    def run(batch):
        state = update.init_state(mesh, optimizer, tiny_params)
        batch = jax.tree.map(jnp.asarray, batch)
        return sft_step(state, batch, mesh=mesh, model=tiny_model, optimizer=optimizer, micro=1)

    return run


def test_the_loss_and_its_gradient_are_those_of_the_weighted_tokens(
    tiny_config, tiny_model, tiny_params, one_step
):
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(0, tiny_config.vocab_size, n).tolist()

    rows = [
        (draw(3), draw(6), [1.0, 1.0, 0.0, 0.0, 1.0, 1.0]),
        (draw(5), draw(2), [0.0, 0.5]),
    ]
    prompts = Prompts(*data.pad_rows([row[0] for row in rows], 5))
    tokens, _ = data.pad_rows([row[1] for row in rows], 8)
    weight = np.zeros((2, 8), np.float32)
    for i, (_, ids, row_weights) in enumerate(rows):
        weight[i, : len(ids)] = row_weights
    _, found = one_step(SftBatch(prompts, tokens[:, None], weight[:, None]))
    loss, gradient = jax.value_and_grad(partial(by_brute_force, tiny_model, rows=rows))(tiny_params)
    norm = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(gradient)))
    assert found.result.loss == pytest.approx(float(loss), rel=1e-5)
    assert found.result.grad_norm == pytest.approx(norm, rel=1e-4)
    assert found.num_tokens == 4.5


def test_no_weight_at_all_changes_nothing(tiny_params, one_step):
    tokens = np.ones((2, 1, 8), np.int32)
    prompts = Prompts(tokens[:, 0, :5], np.array([5, 3], np.int32))
    state, found = one_step(SftBatch(prompts, tokens, np.zeros((2, 1, 8), np.float32)))
    assert found.result.loss == found.result.grad_norm == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, tiny_params)
