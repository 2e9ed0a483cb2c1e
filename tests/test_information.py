"""Answer information against full forwards of every prefix, and a chain that can be solved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from before_jax import MESHES
from conftest import golden_model, plain_logits

from iapo_jax.information import early_exits
from iapo_jax.information import estimators as information
from iapo_jax.information.estimators import ESTIMATORS, Probe, entropy_at, log_probs_at
from iapo_jax.information.probe_positions import choose_positions, every_prefix, interpolate
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.model import attention, scoring
from iapo_jax.model.decoder import DecoderConfig, init_params, make_model
from iapo_jax.model.scoring import forward_completions, prefill
from iapo_jax.sharding import batch_devices, by_prompt, make_mesh, param_shardings, put
from iapo_jax.types import Answers, Cache, Model, ProbePositions, Prompts, Rollout, informativeness

NIGHTLY = pytest.mark.nightly

P, G, L, T, K = 2, 2, 6, 9, 3
PROMPT_LENGTH = np.array([6, 3], np.int32)
LENGTH = np.array([[9, 4], [1, 7]], np.int32)
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(2, 90, (P, L)).astype(np.int32)
COMPLETIONS = RNG.integers(2, 90, (P, G, T)).astype(np.int32)
POSTFIX = RNG.integers(2, 90, K).astype(np.int32)
REAL = np.arange(T + 1) <= LENGTH[..., None]  # positions that read no padding


def probe(model, params, prompts, length, completions, postfix, limit=2**14):
    """`entropy_at` with its contexts, jitted anew for each limit of tokens at once."""
    jitted = _jitted(limit)
    return np.asarray(jitted(model, params, Prompts(prompts, length), completions, postfix))


@functools.cache
def _jitted(limit):
    @functools.partial(jax.jit, static_argnums=0)
    def run(model, params, prompts, completions, postfix):
        before, early_exits.PROBE_TOKENS = early_exits.PROBE_TOKENS, limit
        try:
            prompt = prefill(model, params, prompts)
            _, cache = forward_completions(model, params, prompts, completions, prompt)
            size = completions.shape[-1]
            positions = every_prefix(jnp.full(completions.shape[:2], size), size)
            return entropy_at(model, params, prompts, (prompt, cache), postfix, positions)
        finally:
            early_exits.PROBE_TOKENS = before

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


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_chunk_size_changes_nothing(qwen2, at_once):
    """10 positions one by one, and in chunks of 4, which do not divide them."""
    golden, want = qwen2
    args = golden.model, golden.params, PROMPTS, PROMPT_LENGTH, COMPLETIONS, POSTFIX
    found = probe(*args, limit=at_once * P * G * K)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_padding_changes_nothing(qwen2):
    """Other ids where there is no token, in prompts and in completions: equal to the bit."""
    golden, want = qwen2
    prompts = np.where(np.arange(L) < PROMPT_LENGTH[:, None], PROMPTS, 95)
    completions = np.where(np.arange(T) < LENGTH[..., None], COMPLETIONS, 95)
    found = probe(golden.model, golden.params, prompts, PROMPT_LENGTH, completions, POSTFIX)
    np.testing.assert_array_equal(found[REAL], want[REAL])
    assert (found[~REAL] != want[~REAL]).any()  # the padding was other


def test_neighbors_and_the_future_change_nothing(qwen2):
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

    def forward(params, tokens, positions, contexts, outputs_from=0):
        keys = jnp.zeros((1, *tokens.shape, 1, 1))  # [N, *lead, S, M, d]
        return jax.nn.one_hot(tokens[..., outputs_from:], states), Cache(keys, keys)

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
    """Knows how many tokens precede the answer: after position i the answer is uniform over
    i + 1 tokens. Its entropy is log(i + 1), which gives u_t = log(prompt + t + K) exactly."""

    def forward(params, tokens, positions, contexts, outputs_from=0):
        keys = jnp.zeros((1, *tokens.shape, 1, 1))
        return jax.nn.one_hot(positions[..., outputs_from:], size), Cache(keys, keys)

    table = np.where(np.tri(size, dtype=bool), 0.0, -1e9).astype(np.float32)  # [position, token]
    return Model(forward, lambda params: jnp.asarray(table).T, lambda params: params)


def test_positions_of_the_probe_in_closed_form():
    found = probe(counting_model(32), {}, PROMPTS, PROMPT_LENGTH, COMPLETIONS, POSTFIX)
    seen = PROMPT_LENGTH[:, None, None] + np.arange(T + 1) + K
    np.testing.assert_allclose(found, np.broadcast_to(np.log(seen), found.shape), rtol=1e-5)


# ------------------------------------------------------------------ whole answers

A, Y = 4, 3
# Of three tokens, of one, of four; the second prompt has two answers only.
ANSWERS = Answers(
    RNG.integers(2, 90, (P, 1, Y, A)).astype(np.int32),
    np.array([[[3, 1, 4]], [[2, 4, 0]]], np.int32),
    np.array([[[0, 1, 0]], [[0, 1, 0]]], np.int32),
)


AT = {**ESTIMATORS, "answer_log_probs": log_probs_at}


@functools.partial(jax.jit, static_argnames=("estimator", "model"))
def ask(estimator, model, params, prompts, completions, postfix, answers, positions=None):
    """An estimator with its contexts; one program for all contents of the same shapes."""
    prompt = prefill(model, params, prompts)
    _, cache = forward_completions(model, params, prompts, completions, prompt)
    size = completions.shape[-1]
    if positions is None:
        positions = every_prefix(jnp.full(completions.shape[:2], size), size)
    asked = (postfix, positions) if answers is None else (postfix, positions, answers)
    return AT[estimator](model, params, prompts, (prompt, cache), *asked)


def ask_golden(estimator, golden, answers=ANSWERS, **changed):
    given = dict(prompts=Prompts(PROMPTS, PROMPT_LENGTH), completions=COMPLETIONS, postfix=POSTFIX)
    arguments = given | changed | {"answers": answers}
    return np.asarray(ask(estimator, golden.model, golden.params, **arguments))


def brute_log_probs(golden, answers=ANSWERS):
    """log p of every answer after every prefix by one full forward of each text; [P, G, T+1, Y]."""
    shape, width = (P, G, T + 1, answers.length.shape[-1]), answers.tokens.shape[-1]
    rows = np.zeros((*shape, L + T + K + width), np.int32)
    start = np.zeros(shape, int)
    for p, g, t, y in np.ndindex(shape):
        own = answers.tokens[p, g % answers.tokens.shape[1], y]
        parts = PROMPTS[p, : PROMPT_LENGTH[p]], COMPLETIONS[p, g, :t], POSTFIX, own
        row = np.concatenate(parts)
        rows[p, g, t, y, : len(row)] = row
        start[p, g, t, y] = len(row) - width
    flat = rows.reshape(-1, rows.shape[-1])
    logits = np.float64(np.asarray(plain_logits(golden.model, golden.params, flat)))
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    found = np.full(shape, -1e30)
    for index, (p, g, t, y) in enumerate(np.ndindex(shape)):
        length = answers.length[p, g % answers.length.shape[1], y]
        at = start[p, g, t, y] + np.arange(length)
        if length:
            found[p, g, t, y] = log_p[index, at - 1, flat[index, at]].sum()
    return found


def brute_set_entropy(log_p, meaning, length):
    """Renormalized over the answers that are there, summed over those that mean the same."""
    weight = np.where(length[:, :, None] > 0, np.exp(log_p), 0.0)
    q = weight / weight.sum(-1, keepdims=True)
    summed = np.stack([(q * (meaning[:, :, None] == m)).sum(-1) for m in range(q.shape[-1])], -1)
    return -(summed * np.log(np.maximum(summed, 1e-300))).sum(-1)


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_untied", "llama_tied"])
def test_whole_answers_are_full_forwards(name):
    """Answers of 1 to 4 tokens, sets of two and three; log-probabilities and what follows from
    them."""
    golden = golden_model(name)
    want = brute_log_probs(golden)
    found = ask_golden("answer_log_probs", golden)
    np.testing.assert_allclose(found, want, atol=1e-4)
    np.testing.assert_array_equal(ask_golden("answer_log_prob", golden), -found[..., 0])
    entropy = ask_golden("answer_set_entropy", golden)
    wanted = brute_set_entropy(want, ANSWERS.meaning, ANSWERS.length)
    np.testing.assert_allclose(entropy, wanted, atol=1e-4)
    assert np.ptp(wanted) > 0.1  # the prefixes differ


def test_room_for_long_answers_costs_nothing_while_they_are_short(qwen2):
    """A = 20: the forward behind the postfix is as wide as the longest answer of its place needs,
    in one program for all; long answers are computed a few positions at a time."""
    golden, _ = qwen2
    widths = []

    def forward(params, tokens, positions, contexts, outputs_from=0):
        if len(contexts) == 3:  # prompt, completion, postfix: an answer
            jax.debug.callback(lambda: widths.append(tokens.shape[-1] + 1))
        return golden.model.forward(params, tokens, positions, contexts, outputs_from=outputs_from)

    watched = golden._replace(model=golden.model._replace(forward=forward))
    wide = RNG.integers(2, 90, (P, 1, Y, 20)).astype(np.int32)
    for length, ran in [
        ([[[3, 4, 0]], [[2, 1, 0]]], [4] * 2),
        ([[[3, 20, 9]], [[17, 4, 0]]], [20] * 3 + [20] * 3 + [16] * 3),
    ]:
        answers = Answers(wide, np.int32(length), ANSWERS.meaning)
        widths.clear()
        found = ask_golden("answer_log_probs", watched, answers)
        jax.effects_barrier()
        np.testing.assert_allclose(found, brute_log_probs(golden, answers), atol=1e-4)
        assert widths == ran
    ask.clear_cache()


def test_no_cut_of_a_long_answer_is_computed_twice(qwen2, monkeypatch):
    """Chunks of 2 positions whose answers of 20 tokens fill 3 pieces: 2 pieces of one position."""
    golden, _ = qwen2
    at_once = 7
    monkeypatch.setattr(early_exits, "PROBE_TOKENS", 2 * P * G * at_once)
    sizes = []

    def forward(params, tokens, positions, contexts, outputs_from=0):
        if len(contexts) == 3:
            jax.debug.callback(lambda: sizes.append(tokens.shape[2]))
        return golden.model.forward(params, tokens, positions, contexts, outputs_from=outputs_from)

    watched = golden._replace(model=golden.model._replace(forward=forward))
    answers = Answers(
        np.random.default_rng(9).integers(2, 90, (P, 1, 1, 20)).astype(np.int32),
        np.full((P, 1, 1), 20, np.int32),
        np.zeros((P, 1, 1), np.int32),
    )
    found = ask_golden("answer_log_probs", watched, answers)
    jax.effects_barrier()
    ask.clear_cache()
    assert sizes == [1] * (T + 1)
    np.testing.assert_allclose(found, brute_log_probs(golden, answers), atol=1e-4)


def test_each_completion_may_have_an_answer_of_its_own(qwen2):
    """And one without any has uncertainty 0, not NaN."""
    golden, _ = qwen2
    own = Answers(
        RNG.integers(2, 90, (P, G, 1, A)).astype(np.int32),
        np.array([[[4], [2]], [[0], [1]]], np.int32),
        np.zeros((P, G, 1), np.int32),
    )
    want = -brute_log_probs(golden, own)[..., 0]
    want[1, 0] = 0.0
    np.testing.assert_allclose(ask_golden("answer_log_prob", golden, own), want, atol=1e-4)


def test_an_answer_of_one_token_is_a_logit_of_the_probe(qwen2):
    """Width 1: no forward behind the postfix; p(y) over all y of one token sums to 1."""
    golden, entropy = qwen2
    size = golden.config.vocab_size
    every = Answers(
        np.broadcast_to(np.arange(size, dtype=np.int32)[:, None], (P, 1, size, 1)),
        np.ones((P, 1, size), np.int32),
        np.broadcast_to(np.arange(size, dtype=np.int32), (P, 1, size)),
    )
    log_p = ask_golden("answer_log_probs", golden, every)
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1.0, atol=1e-5)
    # So the entropy over the set of all tokens is that of the first token.
    found = ask_golden("answer_set_entropy", golden, every)
    np.testing.assert_allclose(found, entropy, atol=1e-4)


def test_a_set_without_answers_is_no_uncertainty(qwen2):
    golden, _ = qwen2
    none = ANSWERS._replace(length=np.zeros_like(ANSWERS.length))
    assert not ask_golden("answer_set_entropy", golden, none).any()
    alone = ANSWERS._replace(length=ANSWERS.length * (np.arange(Y) == 0))
    np.testing.assert_allclose(ask_golden("answer_set_entropy", golden, alone), 0.0, atol=1e-6)


def test_contents_share_one_program(qwen2):
    """Other lengths of answers, other numbers and positions: nothing is compiled anew."""
    golden, _ = qwen2
    ask_golden("answer_set_entropy", golden)
    before = ask._cache_size()
    for length in ([[[1, 1, 0]], [[4, 0, 0]]], [[[4, 4, 4]], [[1, 2, 3]]]):
        ask_golden("answer_set_entropy", golden, ANSWERS._replace(length=np.int32(length)))
    assert ask._cache_size() == before


@pytest.mark.parametrize("estimator", ["answer_log_probs", "answer_set_entropy"])
def test_padding_neighbors_and_order_change_nothing(qwen2, estimator):
    golden, _ = qwen2
    want = ask_golden(estimator, golden)
    prompts = np.where(np.arange(L) < PROMPT_LENGTH[:, None], PROMPTS, 95)
    completions = np.where(np.arange(T) < LENGTH[..., None], COMPLETIONS, 95)
    inside = np.arange(A) < ANSWERS.length[..., None]
    answers = ANSWERS._replace(tokens=np.where(inside, ANSWERS.tokens, 95))
    found = ask_golden(
        estimator, golden, answers, prompts=Prompts(prompts, PROMPT_LENGTH), completions=completions
    )
    np.testing.assert_array_equal(found[REAL], want[REAL])
    turned = ask_golden(estimator, golden, completions=COMPLETIONS[:, ::-1])
    np.testing.assert_allclose(turned[:, ::-1], want, atol=1e-5)
    other = Prompts(np.concatenate([PROMPTS[:1], PROMPTS[1:] + 1]), PROMPT_LENGTH)
    np.testing.assert_array_equal(ask_golden(estimator, golden, prompts=other)[0], want[0])


def repeat_prompts(mesh, tree):
    """The prompts of every leaf again and again, until the devices share them evenly."""
    prompts = len(jax.tree.leaves(tree)[0])
    times = -(-batch_devices(mesh) // prompts)
    return jax.tree.map(lambda x: np.concatenate([np.asarray(x)] * times), tree)


@pytest.mark.nightly
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("axes", MESHES)
def test_devices_change_nothing(qwen2, estimator, axes):
    golden, _ = qwen2
    answers = None if estimator == "answer_entropy" else ANSWERS
    mesh = make_mesh(*axes)
    want, batch = repeat_prompts(
        mesh,
        (
            ask_golden(estimator, golden, answers),
            (Prompts(PROMPTS, PROMPT_LENGTH), COMPLETIONS, answers),
        ),
    )
    params = jax.device_put(golden.params, param_shardings(mesh, golden.params))
    split = put(batch, by_prompt(mesh))
    found = ask(estimator, make_model(golden.config, mesh), params, *split[:2], POSTFIX, split[2])
    np.testing.assert_allclose(found, want, atol=1e-5, rtol=1e-6)  # up to 28 nats, in float32


def test_chunks_of_answers_change_nothing(qwen2, monkeypatch):
    golden, _ = qwen2
    want = ask_golden("answer_log_probs", golden)
    monkeypatch.setattr(early_exits, "PROBE_TOKENS", 3 * P * G * K)
    ask.clear_cache()
    np.testing.assert_allclose(ask_golden("answer_log_probs", golden), want, atol=5e-5)
    ask.clear_cache()


def test_a_markov_chain_says_an_answer_in_closed_form():
    """log p = sum of log transition probabilities, from the last postfix token on."""
    transition = np.random.default_rng(2).dirichlet(np.ones(90), size=90).astype(np.float32)
    found = ask(
        "answer_log_probs",
        markov_model(90),
        transition,
        Prompts(PROMPTS, PROMPT_LENGTH),
        COMPLETIONS,
        POSTFIX,
        ANSWERS,
    )
    want = np.full((P, Y), -1e30)
    for p, y in np.ndindex(P, Y):
        length = ANSWERS.length[p, 0, y]
        chain = [POSTFIX[-1], *ANSWERS.tokens[p, 0, y, :length]]
        if length:
            steps = zip(chain, chain[1:], strict=False)
            want[p, y] = sum(np.log(np.float64(transition[i, j])) for i, j in steps)
    np.testing.assert_allclose(found, np.broadcast_to(want[:, None, None], found.shape), rtol=1e-4)


def halving_model(size, start):
    """Each token halves the possible answers: after n tokens, size / 2^n are equally likely.

    `start` is the position of the first completion token; u_t = log(size) - t log 2.
    """

    def forward(params, tokens, positions, contexts, outputs_from=0):
        keys = jnp.zeros((1, *tokens.shape, 1, 1))
        read = positions[..., outputs_from:] - start - K + 1
        return jax.nn.one_hot(read, 16), Cache(keys, keys)

    open_ones = np.maximum(size // 2 ** np.arange(16), 1)
    table = np.where(np.arange(size) < open_ones[:, None], 0.0, -1e9).astype(np.float32)
    return Model(forward, lambda params: jnp.asarray(table).T, lambda params: params)


def test_each_halving_token_tells_log_2():
    """u and s in closed form, by all three estimators."""
    size = 2**T
    model, prompts = halving_model(size, L), Prompts(PROMPTS, np.full(P, L, np.int32))
    answers = Answers(
        np.broadcast_to(np.arange(size, dtype=np.int32)[:, None], (P, 1, size, 1)),
        np.ones((P, 1, size), np.int32),
        np.broadcast_to(np.arange(size, dtype=np.int32), (P, 1, size)),
    )
    want = np.log(size) - np.log(2) * np.arange(T + 1)
    for estimator in ESTIMATORS:
        asked = None if estimator == "answer_entropy" else answers
        u = ask(estimator, model, {}, prompts, COMPLETIONS, POSTFIX, asked)
        np.testing.assert_allclose(u, np.broadcast_to(want, u.shape), atol=1e-5)
        s = informativeness(u, jnp.ones((P, G, T), bool))
        np.testing.assert_allclose(s, np.log(2), atol=1e-5)


# ------------------------------------------------------------------ where


def test_positions_by_hand():
    length = jnp.asarray([[5, 0, 6]])
    for stride, want in [
        (1, [[0, 1, 2, 3, 4, 5, 5], [0] * 7, [0, 1, 2, 3, 4, 5, 6]]),
        (2, [[0, 2, 4, 5, 5, 5, 5], [0] * 7, [0, 2, 4, 6, 6, 6, 6]]),
        (9, [[0, 5, 5, 5, 5, 5, 5], [0] * 7, [0, 6, 6, 6, 6, 6, 6]]),
    ]:
        positions = choose_positions(length, 6, stride=stride)
        np.testing.assert_array_equal(positions.index[0], want)
        np.testing.assert_array_equal(positions.count[0], [len(set(row)) for row in want])
    boundary = jnp.zeros((1, 3, 6), bool).at[0, 0, 2].set(True).at[0, :, 5].set(True)
    positions = choose_positions(
        length, 6, boundary=boundary
    )  # the sixth token of the first is padding
    np.testing.assert_array_equal(positions.index[0, :, :4], [[0, 3, 5, 5], [0] * 4, [0, 6, 6, 6]])
    np.testing.assert_array_equal(positions.count[0], [3, 1, 2])


@pytest.mark.parametrize("stride", [2, 4])
def test_sparse_probes_are_some_of_the_dense_ones(qwen2, stride):
    golden, dense = qwen2
    positions = choose_positions(jnp.asarray(LENGTH), T, stride=stride)
    found = ask_golden("answer_entropy", golden, None, positions=positions)
    for p, g in np.ndindex(P, G):
        count = int(positions.count[p, g])
        at = np.asarray(positions.index[p, g, :count])
        np.testing.assert_allclose(found[p, g, :count], dense[p, g, at], atol=1e-5)
        assert (found[p, g, count:] == found[p, g, count - 1]).all()


def test_chunks_behind_the_last_cut_are_not_computed(qwen2, monkeypatch):
    """The loop ends with the longest completion: a forward that is never run cannot count."""
    golden, _ = qwen2
    calls = []

    def forward(params, tokens, positions, contexts, outputs_from=0):
        if tokens.shape[-1] == K:  # a probe
            jax.debug.callback(lambda: calls.append(1))
        return golden.model.forward(params, tokens, positions, contexts, outputs_from=outputs_from)

    monkeypatch.setattr(early_exits, "PROBE_TOKENS", 2 * P * G * K)  # 2 positions a chunk
    model = golden.model._replace(forward=forward)
    for longest, chunks in [(3, 2), (4, 3), (9, 5)]:
        calls.clear()
        positions = choose_positions(jnp.minimum(jnp.full((P, G), T), longest), T)
        arguments = Prompts(PROMPTS, PROMPT_LENGTH), COMPLETIONS, POSTFIX, None, positions
        jax.block_until_ready(ask("answer_entropy", model, golden.params, *arguments))
        jax.effects_barrier()
        assert len(calls) == chunks
    ask.clear_cache()


def test_spread_keeps_the_sum_of_every_segment():
    """A property: random uncertainties, positions and ends; tokens between them share equally."""
    rng = np.random.default_rng(3)
    size, rows = 23, 40
    length = rng.integers(0, size + 1, (1, rows))
    boundary = rng.random((1, rows, size)) < 0.3
    for options in ({"stride": 1}, {"stride": 5}, {"boundary": jnp.asarray(boundary)}):
        positions = choose_positions(jnp.asarray(length), size, **options)
        at_positions = np.float32(rng.normal(size=(1, rows, size + 1)))
        u = np.asarray(interpolate(jnp.asarray(at_positions), positions, size))
        positions = jax.tree.map(np.asarray, positions)  # slices of jax.Arrays are programs
        thinking = np.arange(size) < length[..., None]
        s = np.asarray(informativeness(jnp.asarray(u), jnp.asarray(thinking)))
        assert not s[~thinking].any()
        for row in range(rows):
            position = positions.index[0, row, : positions.count[0, row]]
            value = at_positions[0, row, : positions.count[0, row]]
            np.testing.assert_array_equal(u[0, row, position], value)  # to the bit
            assert (u[0, row, length[0, row] :] == value[-1]).all()
            np.testing.assert_allclose(s[0, row].sum(), value[0] - value[-1], atol=1e-5)
            for i, (a, b) in enumerate(zip(position, position[1:], strict=False)):
                share = (value[i] - value[i + 1]) / (b - a)
                np.testing.assert_allclose(s[0, row, a:b], share, atol=1e-5)


# ------------------------------------------------------------------ its cost


SMALL = DecoderConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
)


def test_the_probes_add_one_chunk_to_the_scoring_pass():
    """Compiled for T = 512 and 1024: beyond scoring they keep its cache, and need less than as much
    again for a chunk and a layer's keys. Without chunks it would be twice to three times as much,
    and with a cache for each prefix hundreds of times."""
    model, rows = make_model(SMALL), 8
    params = jax.eval_shape(lambda: init_params(SMALL, jax.random.key(0)))

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    one = jax.ShapeDtypeStruct((), jnp.float32)

    def temporary(size, probe):
        floats, flags = jax.ShapeDtypeStruct((1, rows, size), jnp.float32), ids(1, rows)
        tokens, prompts = ids(1, rows, size), Prompts(ids(1, 16), ids(1))
        rollout = Rollout(prompts, tokens, ids(1, rows), floats, flags)
        lowered = compute_signals.lower(model, params, rollout, probe, temperature=one)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    for size in (512, 1024):
        probe = Probe(ids(6), ProbePositions(ids(1, rows, size + 1), ids(1, rows)))
        added = temporary(size, probe) - temporary(size, None)
        cache = rows * (size + 1) * SMALL.num_layers * 2 * SMALL.num_kv_heads * SMALL.head_dim * 4
        assert cache < added < 2 * cache


def test_states_that_are_not_read_are_not_computed():
    """The last layer runs for the read token alone: its products are missing from the program."""
    golden = golden_model("qwen2_tied")
    layers, size = golden.config.num_layers, 16
    tokens = jnp.zeros((2, size), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(size), tokens.shape)

    def flops(outputs_from):
        unrolled = golden.model.unroll(golden.params)
        run = functools.partial(golden.model.forward, outputs_from=outputs_from)
        cost = jax.jit(run).lower(unrolled, tokens, positions, ()).compile().cost_analysis()
        return cost["flops"]

    share = flops(size - 1) / flops(0)
    assert (layers - 1) / layers < share < (layers - 1) / layers + 0.45 / layers


@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_untied"])
def test_reading_from_a_token_on_gives_the_same_states(name):
    golden = golden_model(name)
    tokens = jnp.asarray(COMPLETIONS[:, 0])
    positions = jnp.broadcast_to(jnp.arange(T), tokens.shape)
    forward = jax.jit(golden.model.forward, static_argnames="outputs_from")
    for params in (golden.params, golden.model.unroll(golden.params)):
        whole, cache = forward(params, tokens, positions, ())
        part, same = forward(params, tokens, positions, (), outputs_from=6)
        np.testing.assert_allclose(part, whole[:, 6:], atol=1e-5)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), same, cache)


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


# ------------------------------------------------------------------ a reader that can be solved


def bayesian_model():
    """Reads every token as evidence: the logits of the next are the sum of table[token] so far.

    `params` is the table [V, V] and the cache holds its rows, so that a key read twice, missed or
    seen too early shows. The evidence is a sum, so every u_t has a closed form.
    """

    def forward(params, tokens, positions, contexts, outputs_from=0):
        own = params[tokens]  # [*lead, S, V]
        total = jnp.cumsum(own, axis=-2)
        for cache, visible in contexts:
            past = cache.keys[0, ..., 0, :]  # [*rows, S', V]
            rows = past.ndim - 2
            past = jnp.expand_dims(past, tuple(range(rows, tokens.ndim - 1)))
            cut = visible.reshape(visible.shape + (1,) * (tokens.ndim - visible.ndim))
            mask = jnp.arange(past.shape[-2]) < cut[..., None]
            mask = jnp.broadcast_to(mask, (*tokens.shape, past.shape[-2])).astype(jnp.float32)
            total += mask @ past
        keys = own[None, ..., None, :]  # [N, *lead, S, M, d]
        return total[..., outputs_from:, :], Cache(keys, keys)

    return Model(forward, lambda params: jnp.eye(params.shape[0]), lambda params: params)


TABLE = np.random.default_rng(4).normal(size=(90, 90), scale=0.3).astype(np.float32)
TABLE[:, 2:8] += 0.4  # tokens of answers are likely, so that long and short answers compete
SPOKEN = ANSWERS._replace(tokens=ANSWERS.tokens % 6 + 2)


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def solve(answers):
    """(H of the first token, log p of each answer) by Bayes in float64: [P, G, T+1], [..., Y]."""
    table, entropy = np.float64(TABLE), np.zeros((P, G, T + 1))
    log_prob = np.full((P, G, T + 1, answers.length.shape[-1]), -1e30)
    for p, g, t in np.ndindex(entropy.shape):
        read = [*PROMPTS[p, : PROMPT_LENGTH[p]], *COMPLETIONS[p, g, :t], *POSTFIX]
        log_p = log_softmax(table[read].sum(0))
        entropy[p, g, t] = -(np.exp(log_p) * log_p).sum()
        own = g % answers.length.shape[1]
        for y, length in enumerate(answers.length[p, own]):
            said = answers.tokens[p, own, y, :length]
            steps = [log_softmax(table[[*read, *said[:i]]].sum(0))[z] for i, z in enumerate(said)]
            if length:
                log_prob[p, g, t, y] = sum(steps)
    return entropy, log_prob


def wanted_of(estimator, answers):
    """The estimator's closed form, from `solve`."""
    entropy, log_prob = solve(answers)
    if estimator == "answer_entropy":
        return entropy
    if estimator == "answer_log_prob":
        return np.where(answers.length[:, :, :1] > 0, -log_prob[..., 0], 0.0)
    return brute_set_entropy(log_prob, answers.meaning, answers.length)


def ask_bayesian(estimator, answers=SPOKEN):
    asked = None if estimator == "answer_entropy" else answers
    prompts = Prompts(PROMPTS, PROMPT_LENGTH)
    return np.asarray(ask(estimator, bayes, TABLE, prompts, COMPLETIONS, POSTFIX, asked))


bayes = bayesian_model()


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_every_token_of_a_bayesian_reader_tells_what_bayes_says(estimator):
    """u and s in closed form, where both depend on every token that was read, and on no other."""
    u, want = ask_bayesian(estimator), wanted_of(estimator, SPOKEN)
    np.testing.assert_allclose(u, want, atol=1e-4)
    thinking = np.arange(T) < LENGTH[..., None]
    s = informativeness(jnp.asarray(u), jnp.asarray(thinking))
    told = np.where(thinking, want[..., :-1] - want[..., 1:], 0.0)
    assert np.ptp(told) > 0.1
    np.testing.assert_allclose(s, told, atol=1e-4)


def test_a_markov_chain_is_unsure_of_its_answer_in_closed_form():
    """Sets of two and three answers, two of which mean the same: no prefix changes that."""
    transition = np.random.default_rng(2).dirichlet(np.ones(90), size=90).astype(np.float32)
    inputs = Prompts(PROMPTS, PROMPT_LENGTH), COMPLETIONS, POSTFIX, ANSWERS
    for estimator in ("answer_log_prob", "answer_set_entropy"):
        found = np.asarray(ask(estimator, markov_model(90), transition, *inputs))
        for p in range(P):
            log_p = np.full(Y, -np.inf)
            for y, length in enumerate(ANSWERS.length[p, 0]):
                chain = [POSTFIX[-1], *ANSWERS.tokens[p, 0, y, :length]]
                if length:
                    log_p[y] = np.log(np.float64(transition[chain[:-1], chain[1:]])).sum()
            q = np.bincount(ANSWERS.meaning[p, 0], np.exp(log_p - np.logaddexp.reduce(log_p)))
            q = q[q > 0]
            want = -log_p[0] if estimator == "answer_log_prob" else -(q * np.log(q)).sum()
            np.testing.assert_allclose(found[p], want, rtol=1e-4, atol=1e-6)


def test_an_answer_listed_twice_counts_twice_and_far_ones_stay_finite():
    """q is what the formula says for any set; log-probabilities of -10^4 nats neither overflow
    nor lose the certain answer."""
    present = jnp.ones(3, bool)
    twice = information.set_entropy(jnp.log(jnp.asarray([0.2, 0.2, 0.1])), jnp.arange(3), present)
    np.testing.assert_allclose(twice, -(0.8 * np.log(0.4) + 0.2 * np.log(0.2)), rtol=1e-5)
    merged = information.set_entropy(
        jnp.log(jnp.asarray([0.2, 0.2, 0.1])), jnp.asarray([0, 0, 2]), present
    )
    np.testing.assert_allclose(merged, -(0.8 * np.log(0.8) + 0.2 * np.log(0.2)), rtol=1e-5)
    log_p = jnp.asarray([[-1e4, -1e4, -2e4], [0.0, -1e4, -1e4], [-1e30, -1e30, -1e30]])
    found = information.set_entropy(log_p, jnp.arange(3), present)
    np.testing.assert_allclose(found, [np.log(2), 0.0, np.log(3)], atol=1e-6)
    assert information.set_entropy(log_p, jnp.arange(3), ~present).tolist() == [0.0] * 3


# ------------------------------------------------------------------ estimators as the setup asks


def rollout_of(length=LENGTH, completions=COMPLETIONS, prompts=(PROMPTS, PROMPT_LENGTH)):
    zeros, finished = np.zeros(completions.shape, np.float32), np.ones(length.shape, bool)
    return Rollout(Prompts(*prompts), completions, np.int32(length), zeros, finished)


ONE = np.float32(1.0)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_signals_hold_the_estimator_at_its_positions_and_straight_between(estimator):
    """Probed at every fourth token of a thinking of mixed length; numpy interpolates what Bayes
    says there. In one batch and in two micro-batches, with a set for each prompt."""
    thinking = np.array([[9, 3], [0, 6]], np.int32)
    positions = jax.tree.map(np.asarray, choose_positions(jnp.asarray(thinking), T, stride=4))
    answers = None if estimator == "answer_entropy" else SPOKEN
    want = np.zeros((P, G, T + 1))
    dense = wanted_of(estimator, SPOKEN)
    for p, g in np.ndindex(P, G):
        at = [*range(0, thinking[p, g], 4), thinking[p, g]]
        want[p, g] = np.interp(np.arange(T + 1), at, dense[p, g, at])
    for micro in (1, 2):
        asked = Probe(POSTFIX, positions, answers)
        options = dict(micro=micro, estimator=estimator)
        found = compute_signals(bayes, TABLE, rollout_of(), asked, temperature=ONE, **options)
        np.testing.assert_allclose(found.uncertainty, want, atol=1e-4)
        group = make_groups(rollout_of(), found, *np.zeros((2, P, G)), thinking)
        first, last = (
            np.take_along_axis(dense, np.int64(at)[..., None], -1)[..., 0]
            for at in (np.zeros((P, G)), np.minimum(thinking, LENGTH))
        )
        inside = np.arange(T) < np.minimum(thinking, LENGTH)[..., None]
        s = np.asarray(group.informativeness)
        np.testing.assert_array_equal(s[~inside], 0.0)
        whole = thinking <= LENGTH  # the others stop between two positions
        np.testing.assert_allclose(s.sum(-1)[whole], (first - last)[whole], atol=1e-4)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_nothing_thought_and_nothing_answered_is_never_nan(estimator):
    """Empty completions, no thinking, no answer at all: finite, and tokens carry exactly 0."""
    length, thinking = np.array([[0, 9], [1, 0]]), np.zeros((P, G), np.int32)
    positions = jax.tree.map(np.asarray, choose_positions(jnp.asarray(thinking), T))
    none = ANSWERS._replace(length=np.zeros_like(ANSWERS.length))
    asked = Probe(POSTFIX, positions, None if estimator == "answer_entropy" else none)
    rollout = rollout_of(length)
    found = compute_signals(bayes, TABLE, rollout, asked, temperature=ONE, estimator=estimator)
    group = make_groups(rollout, found, *np.zeros((2, P, G)), thinking)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((found, group)))
    assert not group.informativeness.any() and not group.log_prob[0, 0].any()
    if estimator != "answer_entropy":
        assert not found.uncertainty.any()
    want = solve(ANSWERS)[0][..., :1]  # of the empty prefix, at every column
    if estimator == "answer_entropy":
        np.testing.assert_allclose(found.uncertainty, want + np.zeros(T + 1), atol=1e-4)


def test_prefixes_of_no_tokens_at_all():
    """T = 0: one cut, one value, no token to carry anything."""
    positions = choose_positions(jnp.zeros((1, 2), jnp.int32), 0)
    assert positions.index.tolist() == [[[0], [0]]] and positions.count.tolist() == [[1, 1]]
    u = interpolate(jnp.asarray([[[1.5], [0.0]]]), positions, 0)
    assert u.tolist() == [[[1.5], [0.0]]]
    assert informativeness(u, jnp.zeros((1, 2, 0), bool)).shape == (1, 2, 0)


def test_the_sum_over_the_thinking_of_any_rollout_is_first_minus_last():
    """The property, over 300 rollouts: any u, length, thinking and positions. Exact to the
    bit where every prefix is probed; every segment keeps its sum, and shares it equally."""
    rng = np.random.default_rng(5)
    size, rows = 17, 100
    both = jax.jit(interpolate, static_argnums=2)
    for stride, chance in [(1, None), (3, None), (40, None), (1, 0.0), (1, 0.25), (1, 1.0)]:
        thinking = rng.integers(0, size + 1, (1, rows))
        thinking[0, :2] = 0, size
        boundary = None if chance is None else jnp.asarray(rng.random((1, rows, size)) < chance)
        positions = choose_positions(jnp.asarray(thinking), size, stride=stride, boundary=boundary)
        scale = 10.0 ** rng.integers(-3, 4, (1, rows, 1))
        dense = np.float32(scale * rng.normal(size=(1, rows, size + 1)))
        u = np.asarray(both(jnp.take_along_axis(dense, positions.index, -1), positions, size))
        positions = jax.tree.map(np.asarray, positions)  # slices of jax.Arrays are programs
        boundary = None if boundary is None else np.asarray(boundary)
        inside = np.arange(size) < thinking[..., None]
        s = np.asarray(informativeness(jnp.asarray(u), jnp.asarray(inside)))
        last = np.take_along_axis(dense, thinking[..., None], -1)
        np.testing.assert_array_equal(s[~inside], 0.0)
        np.testing.assert_array_equal(u[..., :1], dense[..., :1])
        behind = np.arange(size + 1) >= thinking[..., None]
        np.testing.assert_array_equal(u[behind], np.broadcast_to(last, u.shape)[behind])
        total = (dense[..., :1] - last)[..., 0]
        error = np.abs(np.float64(s).sum(-1) - total) / scale[..., 0]
        assert error.max() < 1e-5
        every = stride == 1 and chance in (None, 1.0)
        for row in range(rows):
            n = thinking[0, row]
            at = [t for t in range(n + 1) if t in (0, n) or (t % stride == 0 and chance is None)]
            if boundary is not None:
                at = [t for t in range(n + 1) if t in (0, n) or boundary[0, row, t - 1]]
            np.testing.assert_array_equal(positions.index[0, row, : len(at)], at)
            assert positions.count[0, row] == len(at)
            np.testing.assert_array_equal(u[0, row, at], dense[0, row, at])
            if every:
                np.testing.assert_array_equal(s[0, row, :n], -np.diff(dense[0, row, : n + 1]))
            straight = np.interp(np.arange(size + 1), at, dense[0, row, at])
            np.testing.assert_allclose(u[0, row], straight, atol=1e-5 * scale[0, row, 0])


# ------------------------------------------------------------------ what changes nothing


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("at_once, rows", [(1, 1), (4, 3)])
def test_chunks_of_positions_and_of_logits_change_nothing(monkeypatch, estimator, at_once, rows):
    """Chunk sizes of positions and of logits, none of which divides the 10 positions."""
    per_position = P * G * (K if estimator == "answer_entropy" else max(K, A - 1))
    monkeypatch.setattr(early_exits, "PROBE_TOKENS", at_once * per_position)
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", rows * P * G * 90)
    ask.clear_cache()
    found = ask_bayesian(estimator)
    ask.clear_cache()
    np.testing.assert_allclose(found, wanted_of(estimator, SPOKEN), atol=1e-4)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_the_order_of_a_group_and_of_its_answers_changes_nothing(estimator):
    """Completions permuted together with their answers, and a set whose rows are permuted."""
    own = Answers(
        np.random.default_rng(6).integers(2, 8, (P, G, Y, A)).astype(np.int32),
        np.array([[[3, 1, 4], [2, 2, 0]], [[4, 0, 0], [1, 3, 2]]], np.int32),
        np.array([[[0, 1, 0], [0, 1, 0]], [[0, 0, 0], [0, 1, 2]]], np.int32),
    )
    want = ask_bayesian(estimator, own)
    np.testing.assert_allclose(want, wanted_of(estimator, own), atol=1e-4)
    asked = None if estimator == "answer_entropy" else Answers(*(x[:, ::-1] for x in own))
    inputs = Prompts(PROMPTS, PROMPT_LENGTH), COMPLETIONS[:, ::-1], POSTFIX, asked
    turned = np.asarray(ask(estimator, bayes, TABLE, *inputs))
    np.testing.assert_allclose(turned[:, ::-1], want, atol=1e-5)
    if estimator == "answer_set_entropy":
        full = own._replace(length=np.maximum(own.length, 1))
        rows = Answers(*(x[:, :, ::-1] for x in full))
        np.testing.assert_allclose(
            ask_bayesian(estimator, rows), ask_bayesian(estimator, full), atol=1e-5
        )


def test_other_candidates_do_not_change_an_answer():
    """Its log-probability is its own: other tokens, lengths and numbers of the rest of the set."""
    want = ask_bayesian("answer_log_probs")[..., 0]
    rest = np.arange(Y) > 0
    tokens = np.where(rest[:, None], (SPOKEN.tokens + 7) % 90, SPOKEN.tokens)
    for other in (0, 1, A):
        length = np.where(rest, other, SPOKEN.length).astype(np.int32)
        found = ask_bayesian("answer_log_probs", SPOKEN._replace(tokens=tokens, length=length))
        np.testing.assert_allclose(found[..., 0], want, atol=1e-5)


@pytest.mark.parametrize("axes", [MESHES[0], pytest.param(MESHES[1], marks=NIGHTLY), MESHES[2]])
def test_a_mesh_changes_no_signal(axes):
    """Four prompts over data, fsdp and tensor; own sets, strides, chunks of both kinds."""
    golden = golden_model("qwen3_untied")
    rng = np.random.default_rng(0)
    length = np.array([[9, 4], [1, 7], [0, 9], [6, 2]], np.int32)
    shape = 4, G, T
    prompts = rng.integers(2, 90, (4, L)).astype(np.int32), np.array([6, 3, 1, 5], np.int32)
    rollout = rollout_of(length, rng.integers(2, 90, shape).astype(np.int32), prompts)
    answers = Answers(
        rng.integers(2, 90, (4, 1, Y, A)).astype(np.int32),
        np.array([[[3, 3, 4]], [[2, 3, 0]], [[1, 1, 1]], [[0, 0, 0]]], np.int32),
        np.array([[[0, 1, 0]], [[0, 1, 0]], [[0, 1, 2]], [[0, 0, 0]]], np.int32),
    )
    positions = jax.tree.map(np.asarray, choose_positions(jnp.asarray(length), T, stride=2))
    options = dict(estimator="answer_set_entropy")
    mesh = make_mesh(*axes)
    parts = rollout, positions, answers = repeat_prompts(mesh, (rollout, positions, answers))
    one = compute_signals(
        golden.model,
        golden.params,
        rollout,
        Probe(POSTFIX, positions, answers),
        temperature=ONE,
        **options,
    )
    params = jax.device_put(golden.params, param_shardings(mesh, golden.params))
    rollout, positions, answers = put(parts, by_prompt(mesh))
    probe = Probe(POSTFIX, positions, answers)
    model = make_model(golden.config, mesh)
    found = compute_signals(model, params, rollout, probe, temperature=ONE, **options)
    assert np.ptp(one.uncertainty) > 0.1
    np.testing.assert_allclose(found.uncertainty, one.uncertainty, atol=1e-5)


def test_no_content_of_a_rollout_compiles_anew():
    """Answers, candidate sets, positions and lengths of any content: one program each."""
    for estimator in ("answer_log_prob", "answer_set_entropy"):
        before = None
        for stride, length in [(1, [[3, 1, 4], [2, 4, 0]]), (4, [[0, 0, 0], [1, 0, 0]])]:
            answers = ANSWERS._replace(length=np.int32(length)[:, None])
            positions = jax.tree.map(
                np.asarray, choose_positions(jnp.asarray(LENGTH), T, stride=stride)
            )
            probe = Probe(POSTFIX, positions, answers)
            rollout = rollout_of(LENGTH // stride)
            options = dict(estimator=estimator)
            compute_signals(bayes, TABLE, rollout, probe, temperature=ONE, **options)
            assert before in (None, compute_signals._cache_size())
            before = compute_signals._cache_size()


# ------------------------------------------------------------------ what is not computed


def test_keys_beyond_a_chunk_of_positions_are_not_multiplied(qwen2, monkeypatch):
    """Tiles of 4 keys; the cache holds NaN from the 5th input on. A chunk of positions that reads
    up to 4 inputs never meets one; the others do."""
    golden, want = qwen2
    prompts = Prompts(jnp.asarray(PROMPTS), jnp.asarray(PROMPT_LENGTH))

    @jax.jit
    def read(params):
        prompt = prefill(golden.model, params, prompts)
        inputs = params, prompts, jnp.asarray(COMPLETIONS), prompt
        return prompt, forward_completions(golden.model, *inputs)[1]

    prompt, cache = read(golden.params)
    cache = jax.tree.map(lambda x: x.at[:, :, :, 4:].set(jnp.nan), cache)
    monkeypatch.setattr(attention, "DENSE_SCORES", 0)
    monkeypatch.setattr(attention, "KEY_TILE", 4)
    monkeypatch.setattr(attention, "QUERY_TILE", 8)
    monkeypatch.setattr(early_exits, "PROBE_TOKENS", 4 * P * G * K)  # 4 positions a chunk
    positions = choose_positions(jnp.full((P, G), T), T)
    contexts = jax.tree.map(jnp.asarray, (prompt, cache))
    run = jax.jit(functools.partial(entropy_at, golden.model))
    found = np.asarray(run(golden.params, prompts, contexts, POSTFIX, positions))
    np.testing.assert_allclose(found[..., :4], want[..., :4], atol=1e-4)
    assert np.isnan(found[..., 4:]).all()


def widest(jaxpr, size):
    """The most rows of any value in a program whose last axis is `size`, loops included."""
    most = 0
    for equation in jaxpr.eqns:
        for value in equation.outvars:
            shape = getattr(value.aval, "shape", ())
            if shape and shape[-1] == size:
                most = max(most, int(np.prod(shape[:-1])))
        inner = jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns"))
        for program in (getattr(x, "jaxpr", x) for x in inner):
            if hasattr(program, "eqns"):
                most = max(most, widest(program, size))
    return most


def test_the_head_runs_only_where_it_is_read(qwen2, monkeypatch):
    """One row of logits for each cut of a chunk, not one for each token of the postfix; of a
    whole answer one for each of its other tokens, one answer at a time. The last layer too is
    asked for the last postfix token alone."""
    golden, _ = qwen2
    seen = []

    def forward(params, tokens, *args, outputs_from=0):
        seen.append((tokens.shape[2:], outputs_from))
        return golden.model.forward(params, tokens, *args, outputs_from=outputs_from)

    model = golden.model._replace(forward=forward)
    vocabulary = golden.config.vocab_size
    monkeypatch.setattr(early_exits, "PROBE_TOKENS", 2 * P * G * K)  # 2 positions a chunk

    def rows(estimator, *answers):
        def run(params):
            prompts = Prompts(jnp.asarray(PROMPTS), jnp.asarray(PROMPT_LENGTH))
            prompt = prefill(model, params, prompts)
            inputs = params, prompts, jnp.asarray(COMPLETIONS), prompt
            _, cache = forward_completions(model, *inputs)
            positions = every_prefix(jnp.asarray(LENGTH), T)
            asked = params, prompts, (prompt, cache), jnp.asarray(POSTFIX), positions, *answers
            return AT[estimator](model, *asked)

        return widest(jax.make_jaxpr(run)(golden.params).jaxpr, vocabulary)

    assert rows("answer_entropy") == 2 * P * G
    assert {call for call in seen if call[0][1:] == (K,)} == {((2, K), K - 1)}
    assert rows("answer_log_prob", ANSWERS) == 2 * P * G * (A - 1)
    assert rows("answer_set_entropy", ANSWERS) == 2 * P * G * (A - 1)


def test_no_key_is_copied_for_an_answer():
    """T = 512: nine candidates of eight tokens after every prefix need a fraction of what a cache
    for each prefix of one chunk would take."""
    size, width, model = 512, 8, make_model(SMALL)
    params = jax.eval_shape(lambda: init_params(SMALL, jax.random.key(0)))

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    prompts, positions = Prompts(ids(1, 16), ids(1)), ProbePositions(ids(1, 2, size + 1), ids(1, 2))
    answers = Answers(ids(1, 1, 9, width), ids(1, 1, 9), ids(1, 1, 9))

    def read(params, prompts, tokens):
        prompt = prefill(model, params, prompts)
        return prompt, forward_completions(model, params, prompts, tokens, prompt)[1]

    contexts = jax.eval_shape(read, params, prompts, ids(1, 2, size))
    run = jax.jit(functools.partial(information.set_entropy_at, model))
    compiled = run.lower(params, prompts, contexts, ids(6), positions, answers).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    chunk = min(size, early_exits.PROBE_TOKENS // (2 * (width - 1)))
    copies = chunk * 2 * size * SMALL.num_layers * 2 * 2 * 16 * 4  # rows, keys, layers
    assert temporary < copies / 10, (temporary, copies)
