"""The decoder against transformers, and through the context tree against the plain sequence."""

import dataclasses
import json
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, golden_model, plain_logits

from iapo_jax.model.decoder import Llama3Rope, make_model, rope_frequencies
from iapo_jax.pretrained.architecture import decoder_config
from iapo_jax.types import Context

NAMES = ["qwen2_tied", "qwen2_untied", "qwen3_tied", "qwen3_untied", "llama_tied", "llama_untied"]
ARCHITECTURES = ["qwen2_tied", "qwen3_untied"]


@pytest.fixture(scope="module")
def logits():
    with np.load(GOLDEN / "logits.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(logits, name):
    """Right-padded rows of three lengths in one batch; transformers saw each row alone."""
    golden = golden_model(name)
    got = plain_logits(golden.model, golden.params, logits[f"tokens/{name}"])
    real = np.arange(40) < logits[f"length/{name}"][:, None]
    want = logits[f"logits/{name}"]
    assert np.abs(want[real]).max() > 3  # not a trivial model
    np.testing.assert_allclose(np.asarray(got)[real], want[real], atol=1e-4)


# ------------------------------------------------------------------ the tree of contexts

P, G, L, T, K = 2, 2, 6, 4, 3
CUTS = T + 1
LENGTH = np.array([6, 4])


class Tree(NamedTuple):
    """Prompts, completions, and a postfix after each of their T+1 cuts."""

    prompts: np.ndarray  # [P, L]
    completions: np.ndarray  # [P, G, T]
    postfix: np.ndarray  # [K]

    def rows(self):
        """Plain sequences [P*G*CUTS, L+T+K], zero-padded: prompt, completion to a cut, postfix."""
        rows = np.zeros((P, G, CUTS, L + T + K), np.int32)
        for p, g, t in np.ndindex(P, G, CUTS):
            parts = self.prompts[p, : LENGTH[p]], self.completions[p, g, :t], self.postfix
            row = np.concatenate(parts)
            rows[p, g, t, : len(row)] = row
        return rows.reshape(-1, L + T + K)


def random_tree():
    rng = np.random.default_rng(0)
    return Tree(*(rng.integers(2, 90, shape) for shape in ((P, L), (P, G, T), K)))


def random_weights():
    """Of a linear functional of all real states: of prompts, completions, probes."""
    rng = np.random.default_rng(1)
    shapes = [(P, L, 32), (P, G, T, 32), (P, G, CUTS, K, 32)]
    weights = [np.float32(rng.standard_normal(shape)) for shape in shapes]
    weights[0][np.arange(L) >= LENGTH[:, None]] = 0
    return weights


def through_tree(model, params, tree):
    """Hidden states of prompts, completions and probes, each computed from the caches before it."""
    tree = Tree(*map(jnp.asarray, tree))
    positions = jnp.broadcast_to(jnp.arange(L), (P, L))
    h_prompt, cache = model.forward(params, tree.prompts, positions, ())
    prompt = Context(cache, jnp.asarray(LENGTH))
    start = jnp.asarray(LENGTH)[:, None, None]
    positions = jnp.broadcast_to(start + jnp.arange(T), (P, G, T))
    h_completion, cache = model.forward(params, tree.completions, positions, [prompt])
    cuts = jnp.arange(CUTS)
    completion = Context(cache, cuts[None, None])
    shape = (P, G, CUTS, K)
    positions = jnp.broadcast_to((start + cuts)[..., None] + jnp.arange(K), shape)
    tokens = jnp.broadcast_to(tree.postfix, shape)
    h_probe, _ = model.forward(params, tokens, positions, [prompt, completion])
    return [h_prompt, h_completion, h_probe]


def through_plain(model, params, rows):
    """The same states, gathered from full forwards of every sequence."""
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    hidden, _ = model.forward(params, rows, positions, ())
    hidden = hidden.reshape(P, G, CUTS, *hidden.shape[1:])
    after = jnp.stack([hidden[p, :, :, n : n + T + K] for p, n in enumerate(LENGTH)])
    probes = [after[:, :, t, t : t + K] for t in range(CUTS)]
    return [hidden[:, 0, T, :L], after[:, :, T, :T], jnp.stack(probes, axis=2)]


@partial(jax.jit, static_argnames=("states", "model"))
def gradient_and_states(states, model, params, weights, tokens):
    """The gradient in the parameters of the weighted sum of the states, and the states."""

    def total(params):
        made = states(model, params, tokens)
        return sum((h * w).sum() for h, w in zip(made, weights, strict=True)), made

    return jax.grad(total, has_aux=True)(params)


def assert_same_tree(got, want, rtol=1e-5):
    """Each leaf equal to within rtol of its largest entry."""
    flat, structure = jax.tree_util.tree_flatten_with_path(got)
    assert structure == jax.tree.structure(want)
    for (path, a), b in zip(flat, jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, atol=rtol * max(np.abs(b).max(), 1), err_msg=str(path))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_tree_is_the_plain_sequence(name):
    """Prompt, completion and probe: states and gradients in all parameters."""
    golden, tree, weights = golden_model(name), random_tree(), random_weights()
    gradient, states = gradient_and_states(through_tree, golden.model, golden.params, weights, tree)
    want_gradient, want = gradient_and_states(
        through_plain, golden.model, golden.params, weights, tree.rows()
    )
    real = np.arange(L) < LENGTH[:, None]
    np.testing.assert_allclose(states[0][real], want[0][real], atol=1e-5)
    np.testing.assert_allclose(states[1], want[1], atol=1e-5)
    np.testing.assert_allclose(states[2], want[2], atol=1e-5)
    for layer in jax.tree.leaves(gradient["layers"]):
        assert layer.any(axis=tuple(range(1, layer.ndim))).all()  # every layer has a gradient
    assert_same_tree(gradient, want_gradient)


def test_padding_of_prompts_changes_nothing():
    """Other ids in the padding: the states of what follows and all gradients stay, to the bit."""
    golden, tree, weights = golden_model("qwen2_tied"), random_tree(), random_weights()
    padding = np.arange(L) >= LENGTH[:, None]
    other = tree._replace(prompts=np.where(padding, 95, tree.prompts))
    want_gradient, want = gradient_and_states(
        through_tree, golden.model, golden.params, weights, tree
    )
    gradient, states = gradient_and_states(
        through_tree, golden.model, golden.params, weights, other
    )
    assert not gradient["embedding"][95].any()
    np.testing.assert_array_equal(states[1], want[1])
    np.testing.assert_array_equal(states[2], want[2])
    assert_same_tree(gradient, want_gradient, rtol=1e-6)


def test_branches_of_the_tree_do_not_read_each_other():
    """The gradient of one probe's last state reaches exactly what stands before it: its prompt's
    real tokens, its completion up to its cut, and its postfix."""
    golden = golden_model("qwen2_tied")
    ids = np.arange(P * L + P * G * T + K)  # each once
    prompts, completions, postfix = np.split(ids, [P * L, P * L + P * G * T])
    tree = Tree(prompts.reshape(P, L), completions.reshape(P, G, T), postfix)
    direction = np.arange(32.0, dtype=np.float32)
    for p, g, t in [(0, 1, 2), (1, 0, 0), (1, 1, T)]:
        weights = [np.zeros_like(w) for w in random_weights()]
        weights[2][p, g, t, K - 1] = direction
        gradient, _ = gradient_and_states(through_tree, golden.model, golden.params, weights, tree)
        read = np.flatnonzero(np.abs(gradient["embedding"]).max(-1))
        before = tree.prompts[p, : LENGTH[p]], tree.completions[p, g, :t], postfix
        np.testing.assert_array_equal(read, np.concatenate(before))


def test_a_token_reads_what_stands_before_it_and_nothing_else():
    """The gradient of state t in the embedding of token s is zero exactly where s > t."""
    golden = golden_model("llama_untied")
    size = 6
    tokens = jnp.arange(size)[None]  # distinct ids: one embedding row for each position
    directions = np.float32(np.random.default_rng(2).standard_normal((size, 32)))

    @jax.jit
    def reads(embedding):
        def states(embedding):
            params = {**golden.params, "embedding": embedding}
            return golden.model.forward(params, tokens, tokens, ())[0][0]

        _, back = jax.vjp(states, embedding)
        pick = jnp.eye(size)[:, :, None] * directions[None]  # cotangents of one position each
        return jnp.abs(jax.vmap(lambda w: back(w)[0])(pick)[:, :size]).max(-1) > 0

    np.testing.assert_array_equal(reads(golden.params["embedding"]), np.tri(size, dtype=bool))


def whole(model, params, tokens):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, cache = model.forward(params, tokens, positions, ())
    return [hidden, cache.keys, cache.values]


def test_unrolled_layers_change_nothing():
    golden, tokens = golden_model("qwen3_untied"), random_tree().rows()
    forward = jax.jit(whole, static_argnums=0)
    want = forward(golden.model, golden.params, tokens)
    hidden, keys, values = forward(golden.model, golden.model.unroll(golden.params), tokens)
    assert_same_tree([hidden, jnp.stack(keys), jnp.stack(values)], want, rtol=1e-6)


def test_rematerialized_layers_change_nothing():
    golden, tokens = golden_model("qwen3_untied"), random_tree().rows()
    remat = make_model(dataclasses.replace(golden.config, remat=True))
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(partial(whole, golden.model), golden.params, tokens)
    weights = [np.float32(rng.standard_normal(x.shape)) for x in shapes]
    want = gradient_and_states(whole, golden.model, golden.params, weights, tokens)
    got = gradient_and_states(whole, remat, golden.params, weights, tokens)
    assert_same_tree(got, want)


# ------------------------------------------------------------------ rotary frequencies


def numpy_frequencies(theta, width, band=None):
    """Llama 3.1's bands, one frequency at a time, as its paper words them."""
    result = []
    for i in range(0, width, 2):
        frequency = theta ** (-i / width)
        if band is not None:
            factor, low, high, original = dataclasses.astuple(band)
            wavelength = 2 * math.pi / frequency
            if wavelength > original / low:
                frequency /= factor
            elif wavelength >= original / high:
                smooth = (original / wavelength - low) / (high - low)
                frequency = (1 - smooth) * frequency / factor + smooth * frequency
        result.append(frequency)
    return np.array(result)


def hf_config(**fields):
    shape = dict(
        model_type="llama",
        vocab_size=7,
        hidden_size=64,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    return shape | fields


LLAMA3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


@pytest.mark.parametrize(
    "fields",
    [
        dict(rope_theta=5000.0),
        dict(rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
        dict(rope_theta=10.0, rope_parameters={"rope_type": "default", "rope_theta": 5000.0}),
        dict(rope_theta=5000.0, rope_scaling=None),
        dict(rope_parameters={"rope_theta": 9.0}, rope_scaling={"rope_theta": 5000.0}),
    ],
)
def test_rope_theta_is_read_wherever_it_stands(fields):
    config = decoder_config(hf_config(**fields))
    np.testing.assert_allclose(rope_frequencies(config), numpy_frequencies(5000.0, 64), rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        dict(rope_theta=5000.0, rope_scaling={"rope_type": "llama3", **LLAMA3}),
        dict(rope_parameters={"rope_type": "llama3", "rope_theta": 5000.0, **LLAMA3}),
    ],
)
def test_llama3_bands(fields):
    config = decoder_config(hf_config(**fields))
    want = numpy_frequencies(5000.0, 64, Llama3Rope(**LLAMA3))
    plain = numpy_frequencies(5000.0, 64)
    ratio = plain / want
    assert {1.0, 8.0} < set(ratio.round(6))  # kept, stretched, and some between
    np.testing.assert_allclose(rope_frequencies(config), want, rtol=1e-5)


def test_configs_of_real_models(shared_data):
    """(layers, heads, key heads, head width, theta, tied, biases, query norm) from their pages."""
    expected = {
        "Qwen2.5-1.5B-Instruct": (28, 12, 2, 128, 1e6, True, True, False),
        "Qwen2.5-7B-Instruct": (28, 28, 4, 128, 1e6, False, True, False),
        "DeepSeek-R1-Distill-Qwen-1.5B": (28, 12, 2, 128, 1e4, False, True, False),
        "Qwen3-4B": (36, 32, 8, 128, 1e6, True, False, True),
        "Llama-3.2-1B-Instruct": (16, 32, 8, 64, 5e5, True, False, False),
    }
    for name, want in expected.items():
        path = shared_data / "configs" / f"{name}.config.json"
        if not path.is_file():
            pytest.skip(f"{path} is absent")
        c = decoder_config(json.loads(path.read_text()))
        got = (c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim, c.rope_theta)
        got += (c.tie_word_embeddings, c.qkv_bias, c.qk_norm)
        assert got == want, name


# ------------------------------------------------------------------ bfloat16


def test_bfloat16_is_close_and_the_sampler_rounds_like_the_scorer(logits):
    name = "qwen3_tied"
    golden = golden_model(name)
    model = make_model(dataclasses.replace(golden.config, dtype="bfloat16"))
    tokens = logits[f"tokens/{name}"]
    scorer = plain_logits(model, golden.params, tokens)
    sampler = plain_logits(model, model.unroll(golden.params), tokens)
    assert scorer.dtype == jnp.float32
    real = np.arange(40) < logits[f"length/{name}"][:, None]
    want = logits[f"logits/{name}"][real]
    error = np.asarray(scorer)[real] - want
    assert np.linalg.norm(error) < 0.05 * np.linalg.norm(want)
    drift = np.asarray(sampler)[real] - np.asarray(scorer)[real]
    assert np.linalg.norm(drift) < 0.01 * np.linalg.norm(want)  # 0.016 with rounded norms
