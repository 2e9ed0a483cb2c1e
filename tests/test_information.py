"""Answer information against full forwards of every prefix, and a chain that can be solved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import golden_model, plain_logits

from iapo_jax import information
from iapo_jax.information import answer_entropy, every_prefix, informativeness
from iapo_jax.scoring import read_completions, read_prompts
from iapo_jax.types import Cache, Model, Prompts

P, G, L, T, K = 2, 2, 6, 9, 3
PROMPT_LENGTH = np.array([6, 3], np.int32)
LENGTH = np.array([[9, 4], [1, 7]], np.int32)
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(2, 90, (P, L)).astype(np.int32)
COMPLETIONS = RNG.integers(2, 90, (P, G, T)).astype(np.int32)
POSTFIX = RNG.integers(2, 90, K).astype(np.int32)
REAL = np.arange(T + 1) <= LENGTH[..., None]  # cuts that read no padding


def probe(model, params, prompts, length, completions, postfix, limit=2**14):
    """`answer_entropy` with its contexts, jitted anew for each limit of tokens at once."""
    jitted = _jitted(limit)
    return np.asarray(jitted(model, params, Prompts(prompts, length), completions, postfix))


@functools.cache
def _jitted(limit):
    @functools.partial(jax.jit, static_argnums=0)
    def run(model, params, prompts, completions, postfix):
        before, information._PROBE_TOKENS = information._PROBE_TOKENS, limit
        try:
            prompt = read_prompts(model, params, prompts)
            _, cache = read_completions(model, params, prompts, completions, prompt)
            size = completions.shape[-1]
            cuts = every_prefix(jnp.full(completions.shape[:2], size), size)
            return answer_entropy(model, params, prompts, (prompt, cache), postfix, cuts)
        finally:
            information._PROBE_TOKENS = before

    return run


def brute_force(golden, completions=COMPLETIONS, postfix=POSTFIX):
    """Entropy after prompt + completion[:t] + postfix by a full forward of each; [P, G, T+1]."""
    size = completions.shape[-1]
    rows = np.zeros((P, G, size + 1, L + size + len(postfix)), np.int32)
    last = np.zeros((P, G, size + 1), int)
    for p, g, t in np.ndindex(last.shape):
        parts = PROMPTS[p, : PROMPT_LENGTH[p]], completions[p, g, :t], postfix
        row = np.concatenate(parts)
        rows[p, g, t, : len(row)] = row
        last[p, g, t] = len(row) - 1
    logits = np.asarray(plain_logits(golden.model, golden.params, rows.reshape(-1, rows.shape[-1])))
    at = np.float64(logits[np.arange(last.size), last.ravel()])
    log_p = at - np.logaddexp.reduce(at, axis=-1, keepdims=True)
    return -(np.exp(log_p) * log_p).sum(-1).reshape(last.shape)


@pytest.fixture(scope="module")
def qwen2():
    """The golden model and its entropies at every cut."""
    golden = golden_model("qwen2_tied")
    found = probe(golden.model, golden.params, PROMPTS, PROMPT_LENGTH, COMPLETIONS, POSTFIX)
    return golden, found


def test_every_prefix_is_a_full_forward(qwen2):
    """Mixed lengths of prompts and completions; the cut at 0 and at the end included."""
    golden, found = qwen2
    want = brute_force(golden)
    assert np.ptp(want[REAL]) > 0.5  # the prefixes differ
    np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3_untied", "llama_tied"])
def test_every_prefix_of_the_other_architectures(name):
    golden = golden_model(name)
    found = probe(golden.model, golden.params, PROMPTS, PROMPT_LENGTH, COMPLETIONS, POSTFIX)
    np.testing.assert_allclose(found, brute_force(golden), atol=1e-4)


def test_a_postfix_of_one_token(qwen2):
    golden, _ = qwen2
    postfix, short = POSTFIX[:1], COMPLETIONS[..., :3]
    found = probe(golden.model, golden.params, PROMPTS, PROMPT_LENGTH, short, postfix)
    np.testing.assert_allclose(found, brute_force(golden, short, postfix), atol=1e-4)


@pytest.mark.parametrize("cuts_at_once", [1, 4])
def test_the_chunk_size_changes_nothing(qwen2, cuts_at_once):
    """10 cuts one by one, and in chunks of 4, which do not divide them."""
    golden, want = qwen2
    args = golden.model, golden.params, PROMPTS, PROMPT_LENGTH, COMPLETIONS, POSTFIX
    found = probe(*args, limit=cuts_at_once * P * G * K)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_padding_changes_nothing(qwen2):
    """Other ids where there is no token, in prompts and in completions: equal to the bit."""
    golden, want = qwen2
    prompts = np.where(np.arange(L) < PROMPT_LENGTH[:, None], PROMPTS, 95)
    completions = np.where(np.arange(T) < LENGTH[..., None], COMPLETIONS, 95)
    found = probe(golden.model, golden.params, prompts, PROMPT_LENGTH, completions, POSTFIX)
    np.testing.assert_array_equal(found[REAL], want[REAL])
    assert (found[~REAL] != want[~REAL]).any()  # the padding was other


def test_neighbours_and_the_future_change_nothing(qwen2):
    """u_t of one completion, when all others and its own tokens after t are replaced."""
    golden, want = qwen2
    t = 4
    prompts, completions = PROMPTS.copy(), (COMPLETIONS + 1) % 90
    prompts[1] = (prompts[1] + 1) % 90
    completions[0, 1, :t] = COMPLETIONS[0, 1, :t]
    found = probe(golden.model, golden.params, prompts, PROMPT_LENGTH, completions, POSTFIX)
    np.testing.assert_array_equal(found[0, 1, : t + 1], want[0, 1, : t + 1])
    assert (np.abs(found - want)[0, 1, t + 1 :] > 1e-6).all()


# ------------------------------------------------------------------ a chain that can be solved


def markov_model(states):
    """The next token depends on the last one alone: hidden = onehot(token), W^T = log transition.

    `params` is the transition matrix. The cache is empty of meaning, but has its axes.
    """

    def forward(params, tokens, positions, contexts, read_from=0):
        keys = jnp.zeros((1, *tokens.shape, 1, 1))  # [N, *lead, S, M, d]
        return jax.nn.one_hot(tokens[..., read_from:], states), Cache(keys, keys)

    return Model(forward, lambda params: jnp.log(params).T, lambda params: params)


def test_a_markov_chain_knows_its_answer_from_the_postfix_alone():
    """u_t is the entropy of the transition row of the last postfix token, whatever t."""
    rng = np.random.default_rng(1)
    transition = rng.dirichlet(np.ones(90), size=90).astype(np.float32)
    row = np.float64(transition[POSTFIX[-1]])
    model = markov_model(90)
    found = probe(model, transition, PROMPTS, PROMPT_LENGTH, COMPLETIONS, POSTFIX)
    np.testing.assert_allclose(found, -(row * np.log(row)).sum(), rtol=1e-5)


def counting_model(size):
    """Knows how many tokens stand before the answer: after position i the answer is uniform over
    i + 1 tokens. Its entropy is log(i + 1), which gives u_t = log(prompt + t + K) exactly."""

    def forward(params, tokens, positions, contexts, read_from=0):
        keys = jnp.zeros((1, *tokens.shape, 1, 1))
        return jax.nn.one_hot(positions[..., read_from:], size), Cache(keys, keys)

    table = np.where(np.tri(size, dtype=bool), 0.0, -1e9).astype(np.float32)  # [position, token]
    return Model(forward, lambda params: jnp.asarray(table).T, lambda params: params)


def test_positions_of_the_probe_in_closed_form():
    found = probe(counting_model(32), {}, PROMPTS, PROMPT_LENGTH, COMPLETIONS, POSTFIX)
    seen = PROMPT_LENGTH[:, None, None] + np.arange(T + 1) + K
    np.testing.assert_allclose(found, np.broadcast_to(np.log(seen), found.shape), rtol=1e-5)


# ------------------------------------------------------------------ informativeness


def test_informativeness_by_hand():
    uncertainty = jnp.asarray([2.0, 1.5, 1.75, 0.25, 0.0])
    thinking = jnp.asarray([True, True, True, False])
    np.testing.assert_allclose(informativeness(uncertainty, thinking), [0.5, -0.25, 1.5, 0.0])


def test_informativeness_telescopes(qwen2):
    """Its sum over the first n tokens is u_0 - u_n: the information of the thinking as a whole."""
    _, uncertainty = qwen2
    thinking_length = np.array([[9, 0], [1, 5]])
    thinking = np.arange(T) < thinking_length[..., None]
    made = np.asarray(informativeness(jnp.asarray(uncertainty), jnp.asarray(thinking)))
    assert not made[~thinking].any()
    end = np.take_along_axis(uncertainty, thinking_length[..., None], -1)[..., 0]
    np.testing.assert_allclose(made.sum(-1), uncertainty[..., 0] - end, atol=1e-5)
