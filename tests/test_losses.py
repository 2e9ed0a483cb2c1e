"""The policy loss against TRL's, gradients included; k3 and aggregation in closed form."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax.algorithms.policy_loss import (
    LOSS_TYPES,
    LossOptions,
    aggregate,
    k3,
    loss_scale,
    loss_statistics,
    policy_loss,
)
from iapo_jax.model.decoder import make_model
from iapo_jax.model.scoring import score_completions
from iapo_jax.pretrained import architecture, weights
from iapo_jax.runtime import files
from iapo_jax.training import optimizer as update
from iapo_jax.training.update import TrainBatch
from iapo_jax.types import Credit, Prompts, valid_mask


@pytest.fixture(scope="module")
def golden(root):
    with np.load(root / "tests" / "golden" / "grpo_loss.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def policy(root):
    """The model whose gradients TRL computed."""
    directory = root / "tests" / "golden" / "models" / "qwen2_tied"
    config = architecture.decoder_config(files.read_json(directory / "config.json"))
    params = weights.load_params(directory, config)
    return SimpleNamespace(config=config, model=make_model(config), params=params)


def batch_of(golden, which):
    """The frozen batch; `which` is B (an advantage for each completion) or BT (for each token)."""
    mask = valid_mask(jnp.asarray(golden["completion_length"]), golden["log_prob"].shape[-1])
    advantage = jnp.asarray(golden[f"advantages_{which}"])
    if which == "B":
        advantage = jnp.broadcast_to(advantage[..., None], mask.shape)
    return TrainBatch(
        Prompts(jnp.asarray(golden["prompt_tokens"]), jnp.asarray(golden["prompt_length"])),
        jnp.asarray(golden["completion_tokens"]),
        jnp.asarray(golden["old_log_prob"]),
        jnp.asarray(golden["ref_log_prob"]),
        Credit(advantage, mask.astype(jnp.float32)),
    )


def options_of(golden, loss_type):
    names = ("epsilon", "epsilon_high", "beta")
    return LossOptions(loss_type, **{name: float(golden[name]) for name in names})


@partial(jax.jit, static_argnames=("model", "options", "max_length", "micro"))
def loss_and_gradient(model, params, batch, temperature, chosen, *, options, max_length, micro=1):
    """As `training.update.policy_update` has it, without the optimizer.

    The loss is that of `chosen`, a one-hot over `options`: one program serves every loss type.
    """
    scale = loss_scale(batch.credit.weight)

    def loss(params, part):
        scores = score_completions(model, params, part.prompts, part.tokens, temperature)
        read = scores.log_prob, part.old_log_prob, part.credit
        more = dict(ref_log_prob=part.ref_log_prob, max_length=max_length, scale=scale)
        values = [policy_loss(*read, **option._asdict(), **more) for option in options]
        limits = dict(epsilon=options[0].epsilon, epsilon_high=options[0].epsilon_high)
        found = loss_statistics(*read, **limits, ref_log_prob=part.ref_log_prob)
        return jnp.dot(chosen, jnp.stack(values)), found

    return update.accumulate_gradients(loss, params, batch, micro)


def run(golden, policy, loss_type, batch, micro=1):
    return loss_and_gradient(
        policy.model,
        policy.params,
        batch,
        golden["temperature"],
        jnp.array([name == loss_type for name in LOSS_TYPES], jnp.float32),
        options=tuple(options_of(golden, name) for name in LOSS_TYPES),
        max_length=int(golden["max_completion_length"]),
        micro=micro,
    )


@pytest.mark.parametrize("which", ["B", "BT"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_every_gradient_are_trls(golden, policy, loss_type, which):
    gradient, loss, _ = run(golden, policy, loss_type, batch_of(golden, which))
    np.testing.assert_allclose(loss, golden[f"loss/{loss_type}/{which}"], atol=1e-5)
    ours = weights.hf_tensors(jax.device_get(gradient), policy.config.num_layers, np.float32)
    stored = "bnpo" if loss_type == "dapo" else loss_type  # TRL's are equal bit for bit
    prefix = f"grad/{stored}/{which}/"
    theirs = {key.removeprefix(prefix): golden[key] for key in golden if key.startswith(prefix)}
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert np.abs(value).max() > 1e-4, f"{name}: TRL's gradient says nothing"
        np.testing.assert_allclose(ours[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("which", ["B", "BT"])
def test_metrics_are_trls(golden, policy, which):
    *_, found = run(golden, policy, "grpo", batch_of(golden, which))
    ours = {"kl": found.kl, "clip_ratio/low_mean": found.clipped_low}
    ours |= {"clip_ratio/high_mean": found.clipped_high, "clip_ratio/region_mean": found.clipped}
    for name, mean in ours.items():
        expected = golden[f"metric/{which}/{name}"]
        np.testing.assert_allclose(mean.value(), expected, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_micro_batches_change_nothing(golden, policy, loss_type):
    # The two prompts have 20 and 25 tokens: a mean of micro-batch means would differ.
    batch = batch_of(golden, "BT")
    gradient, loss, metrics = run(golden, policy, loss_type, batch)
    in_parts = run(golden, policy, loss_type, batch, micro=2)
    # float32 sums in another order, of gradients up to 0.6
    np.testing.assert_allclose(in_parts[1], loss, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), in_parts[0], gradient)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), in_parts[2], metrics)


# TRL's bnpo divides by the tokens of the micro-batch, ours by those of the whole batch.
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_a_micro_batchs_share_is_trls(golden, loss_type):
    batch = batch_of(golden, "BT")
    scale = loss_scale(batch.credit.weight)
    for p, expected in enumerate(golden[f"micro_loss/{loss_type}/BT"]):
        policies = [jnp.asarray(golden[f"{n}log_prob"][p]) for n in ("", "old_", "ref_")]
        share = policy_loss(
            *policies[:2],
            Credit(batch.credit.advantage[p], batch.credit.weight[p]),
            **options_of(golden, loss_type)._asdict(),
            ref_log_prob=policies[2],
            max_length=int(golden["max_completion_length"]),
            scale=scale,
        )
        np.testing.assert_allclose(share, expected, atol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_nothing_weighted_gives_no_loss_and_no_gradient(golden, policy, loss_type):
    batch = batch_of(golden, "BT")
    nothing = batch._replace(credit=batch.credit._replace(weight=0 * batch.credit.weight))
    gradient, loss, metrics = run(golden, policy, loss_type, nothing)
    assert loss == 0
    assert all((x == 0).all() for x in jax.tree.leaves(gradient))
    assert all(mean.value() == 0 for mean in metrics)


def test_what_stands_on_padding_changes_nothing(golden, policy):
    batch = batch_of(golden, "BT")
    padding = batch.credit.weight == 0

    def spoil(x, value):
        return jnp.where(padding, value, x)

    spoilt = batch._replace(
        tokens=spoil(batch.tokens, 7),
        old_log_prob=spoil(batch.old_log_prob, -1e4),  # a ratio of exp(1e4)
        ref_log_prob=spoil(batch.ref_log_prob, jnp.nan),
        credit=batch.credit._replace(advantage=spoil(batch.credit.advantage, 1e3)),
    )
    plain, other = (run(golden, policy, "grpo", b) for b in (batch, spoilt))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-7), other, plain)


def test_k3():
    # d = 0, log 2, -log 2 in  exp(d) - d - 1.
    log_prob = jnp.log(jnp.array([0.5, 0.25, 0.5]))
    ref = jnp.log(jnp.array([0.5, 0.5, 0.25]))
    expected = [0.0, 1 - np.log(2), np.log(2) - 0.5]
    np.testing.assert_allclose(k3(log_prob, ref), expected, atol=1e-6)


def test_k3_estimates_the_kl():
    # E_{o ~ p} k3 = sum_o p (q/p - log(q/p) - 1) = 1 + KL(p || q) - 1.
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    got = (p * np.asarray(k3(jnp.log(p), jnp.log(q)))).sum()
    np.testing.assert_allclose(got, (p * np.log(p / q)).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "loss_type, expected",
    [
        # Completions of 1, 2 and 0 weighted tokens with losses (6), (1, 3): means 6 and 2.
        ("grpo", (6 + 2) / 2),
        ("bnpo", (6 + 1 + 3) / 3),
        ("dapo", (6 + 1 + 3) / 3),
        ("dr_grpo", (6 + 1 + 3) / (2 * 5)),  # 2 completions, T = 5 in the config
    ],
)
def test_aggregate_by_hand(loss_type, expected):
    per_token = jnp.array([[6.0, 9.0], [1.0, 3.0], [9.0, 9.0]])
    weight = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    got = aggregate(per_token, weight, loss_scale(weight), loss_type=loss_type, max_length=5)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_an_unknown_loss_type_is_named():
    x = jnp.ones((1, 1))
    with pytest.raises(ValueError, match="loss_type is 'ppo'; expected one of grpo, bnpo"):
        aggregate(x, x, loss_scale(x), loss_type="ppo", max_length=1)


def test_clip_by_hand():
    # One token each; epsilon 0.2 below, 0.3 above. Ratio 2 at A = 1 is cut to 1.3 and has no
    # gradient; at A = -1 it stays (the pessimistic side). Ratio 1/2 at A = -1 is cut to 0.8.
    ratio = jnp.array([[2.0], [2.0], [0.5], [0.5]])
    advantage = jnp.array([[1.0], [-1.0], [-1.0], [1.0]])
    weight = jnp.ones((4, 1))

    def total(log_prob):
        read = log_prob, jnp.zeros((4, 1)), Credit(advantage, weight)
        limits = dict(epsilon=0.2, epsilon_high=0.3)
        return policy_loss(*read, loss_type="bnpo", **limits), loss_statistics(*read, **limits)

    (loss, found), gradient = jax.value_and_grad(total, has_aux=True)(jnp.log(ratio))
    np.testing.assert_allclose(loss, (-1.3 + 2.0 + 0.8 - 0.5) / 4, rtol=1e-6)
    # d(-ratio A)/d log_prob = -ratio A where it is not cut
    np.testing.assert_allclose(gradient[:, 0], [0.0, 2.0 / 4, 0.0, -0.5 / 4], atol=1e-7)
    assert found.clipped_low.value() == found.clipped_high.value() == 0.25
    assert found.clipped.value() == 0.5


def test_the_loss_alone_counts_its_own_batch(golden):
    """Without `scale` and `max_length`, the loss normalizes by its own completions and by T."""
    read = [jnp.asarray(golden[f"{n}log_prob"]) for n in ("", "old_")]
    credit = batch_of(golden, "BT").credit
    more = dict(scale=loss_scale(credit.weight), max_length=credit.weight.shape[-1])
    for name in LOSS_TYPES:
        alone = policy_loss(*read, credit, loss_type=name)
        np.testing.assert_array_equal(alone, policy_loss(*read, credit, loss_type=name, **more))

    def of(p):
        return [jax.tree.map(lambda x: x[p], x) for x in (*read, credit)]

    parts = [policy_loss(*of(p), scale=more["scale"]) for p in range(2)]
    np.testing.assert_allclose(sum(parts), policy_loss(*read, credit), atol=1e-6)


def test_a_kl_needs_a_reference():
    x = jnp.zeros((1, 1))
    with pytest.raises(ValueError, match="^beta is 0.1, but ref_log_prob is None; expected"):
        policy_loss(x, x, Credit(x, x), beta=0.1)
