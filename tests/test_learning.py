"""It learns like the peers: a random policy finds the paid tokens within 30 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax.algorithms.methods import ALGORITHMS
from iapo_jax.algorithms.policy_loss import LossOptions
from iapo_jax.config.sections import OptimizerSection
from iapo_jax.information.signals import compute_signals, make_groups
from iapo_jax.model.decoder import DecoderConfig, init_params, make_model
from iapo_jax.model.sampling import prompt_keys, sample
from iapo_jax.sharding import make_mesh
from iapo_jax.training import optimizer as update
from iapo_jax.training.update import TrainBatch, UpdateSpec, assign_credit, policy_update
from iapo_jax.types import Prompts

pytestmark = pytest.mark.nightly

STEPS, P, G, T, V = 30, 2, 8, 32, 512
PAID = 272  # ids below it are paid for: 272/512 = 0.531 of a random policy's tokens


@pytest.fixture(scope="module")
def rewards():
    """The mean reward of each step: TRL's AdamW and clipping, constant rate, no KL, GRPO's loss."""
    config = DecoderConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        qkv_bias=True,
    )
    model, mesh = make_model(config), make_mesh(1, 1, 1)
    section = OptimizerSection(learning_rate=1e-2, lr_scheduler_type="constant", adam_beta2=0.999)
    optimizer = update.make_optimizer(section, STEPS)
    state = update.init_state(mesh, optimizer, init_params(config, jax.random.key(0)))
    spec = UpdateSpec(optimizer, LossOptions("grpo", 0.2, 0.2, 0.0), 1, 1, T)
    rng = np.random.default_rng(0)
    prompts = Prompts(jnp.asarray(rng.integers(0, V, (P, 8)), jnp.int32), jnp.array([8, 5]))
    no_stop, allowed, one = jnp.zeros(0, jnp.int32), jnp.ones(V, bool), jnp.float32(1.0)
    means = []
    for step in range(STEPS):
        rollout = sample(
            model,
            model.unroll(state.params),
            prompts,
            prompt_keys(0, step, np.arange(P)),
            num_generations=G,
            max_length=T,
            stop_ids=no_stop,
            allowed=allowed,
        )
        assert (rollout.length == T).all()
        reward = (rollout.tokens < PAID).mean(-1)
        signals = compute_signals(
            model,
            state.params,
            rollout,
            temperature=one,
        )
        groups = make_groups(rollout, signals, reward, reward > 0.5, rollout.length)
        credit = assign_credit(
            groups, prompt_keys(1, step, np.arange(P)), algorithm=ALGORITHMS["grpo"]
        )
        batch = TrainBatch(prompts, rollout.tokens, *signals[:2], credit._replace(bonus=None))
        state, *_ = policy_update(state, batch, np.int32(0), one, mesh=mesh, model=model, spec=spec)
        means.append(float(reward.mean()))
    return means


def test_it_starts_at_the_share_of_paid_tokens(rewards):
    # 512 tokens of a nearly uniform policy: standard error sqrt(0.53 * 0.47 / 512) = 0.022
    assert rewards[0] == pytest.approx(PAID / V, abs=0.09)


def test_it_learns_like_the_peers(rewards):
    assert max(rewards[:20]) > 0.9, rewards
    assert rewards[19] > 0.9, rewards
    assert max(rewards[-3:]) > 0.995, rewards
