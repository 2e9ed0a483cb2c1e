"""Named methods: what binds to which piece, what a wrong option says, a method of one's own."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from groups import OPTIONS, usual_group

from iapo_jax.algorithms import advantages, iapo
from iapo_jax.algorithms import filters as selection
from iapo_jax.algorithms import reward_shaping as shaping
from iapo_jax.algorithms.methods import ALGORITHMS, Algorithm, make_algorithm
from iapo_jax.algorithms.options import bind_options
from iapo_jax.algorithms.policy_loss import LossOptions
from iapo_jax.types import Credit, Group


@pytest.fixture
def usual():
    return usual_group()


def mine(group, key, *, strength: float = 0.5, cut: int):
    """A rule of one's own: shorter is better, up to `cut` tokens."""
    length = group.mask.sum(-1).astype(jnp.float32)
    base = -strength * jnp.minimum(length, cut)
    return Credit(base[:, None] * group.mask, group.mask.astype(jnp.float32))


def test_options_are_bound_and_losses_replaced(usual):
    bound = make_algorithm(
        "iapo", {"information_weight": 0.0, "exploration_weight": 0}, beta=0.5, loss_type="dapo"
    )
    expected = advantages.grpo(usual)
    np.testing.assert_array_equal(bound.advantage(usual, None).advantage, expected.advantage)
    assert bound.loss == ALGORITHMS["iapo"].loss._replace(beta=0.5, loss_type="dapo")
    assert bound.needs_information
    assert make_algorithm("grpo", {}) == ALGORITHMS["grpo"]


def test_options_find_their_piece(usual):
    made = make_algorithm("dapo", {"overlong_cache": 4, "scale_rewards": "none"}, max_length=13)
    reward = shaping.overlong(usual, max_length=13, overlong_cache=4)
    expected = reward - reward.mean()
    np.testing.assert_allclose(made.credit(usual).advantage[:, 0], expected, atol=1e-6)
    assert made.dynamic_sampling
    assert not make_algorithm("dapo", max_length=13, dynamic_sampling=False).dynamic_sampling


def test_the_order_of_the_pieces(usual):
    # The filter sees shaped rewards, the rule what the filter left, the token mask comes last.
    seen = []

    def shape(group):
        seen.append(("shape", np.asarray(group.reward)))
        return group.reward * 2

    def keep(group):
        seen.append(("keep", np.asarray(group.reward)))
        return group.correct

    def rule(group, key):
        seen.append(("rule", np.asarray(group.mask.any(-1))))
        return advantages.grpo(group)

    def token_mask(group, key):
        return jnp.arange(group.mask.shape[1]) < 3

    method = Algorithm(
        rule, LossOptions(), reward_shaping=shape, filter=keep, token_mask=token_mask
    )
    credit = method.credit(usual, jax.random.key(0))
    assert [name for name, _ in seen] == ["shape", "keep", "rule"]
    np.testing.assert_array_equal(seen[1][1], 2 * usual.reward)
    np.testing.assert_array_equal(seen[2][1], usual.correct)
    weight = np.asarray(credit.weight)
    assert weight[:, :3].all() and not weight[:, 3:].any()  # what is left out counts, as zeros
    assert (np.asarray(credit.advantage)[~np.asarray(usual.correct)] == 0).all()


def test_a_rule_of_your_own(usual):
    made = make_algorithm(mine, {"strength": 1.0, "cut": 6})
    np.testing.assert_allclose(made.credit(usual).advantage[:, 0], [-6.0, -6.0, -6.0, -5.0])
    assert made.needs_information  # it may look at anything
    assert made.loss == ALGORITHMS["iapo"].loss  # so that the rules are compared, not the losses


def test_an_algorithm_of_your_own(usual):
    own = Algorithm(
        advantages.rloo, LossOptions("dapo"), filter=partial(selection.keep_best, keep=2)
    )
    made = make_algorithm(own, {"metric": "efficiency"}, epsilon_high=0.3)
    assert made.loss == LossOptions("dapo", 0.2, 0.3, 0.0)
    kept = selection.keep_best(usual, keep=2, metric="efficiency")
    credit = made.credit(usual)
    np.testing.assert_array_equal(credit.advantage.any(-1), kept)
    np.testing.assert_array_equal(credit.weight, usual.mask)


def test_nothing_is_given_to_padding(usual):
    def everywhere(group, key):
        return Credit(*[jnp.ones(group.mask.shape)] * 3)

    for leaf in make_algorithm(everywhere).credit(usual):
        np.testing.assert_array_equal(leaf, usual.mask)


def test_what_cannot_be_hashed_may_still_be_a_rule(usual):
    @dataclasses.dataclass  # which has no hash
    class Rule:
        strength: float

        def __call__(self, group, key):
            return Credit(self.strength * group.log_prob, group.mask.astype(jnp.float32))

    hash(make_algorithm(Rule(2.0)))


@pytest.mark.parametrize(
    "name, old, new",
    [
        *[(name, "alpha", "information_weight") for name in ALGORITHMS if name.startswith("iapo")],
        *[("iapo" + end, "beta", "exploration_weight") for end in ("", "_ni", "_ne", "_shuffled")],
        ("iapo_random", "beta", "exploration_weight"),
        ("iapo_reference", "beta", "exploration_weight"),
        ("gtpo", "alpha", "entropy_weight"),
        *[(name, "normaliser", "normalizer") for name in ("iapo", "iapo_priced", "gtpo")],
        *[(name, "worth", "correct_bonus") for name in ("length_penalty", "length_cap", "l1_max")],
    ],
)
def test_an_earlier_name_of_an_option_is_answered_by_the_new_one(name, old, new):
    expected = f"^algorithm.options.{old} is unknown; its name is now {new}$"
    with pytest.raises(ValueError, match=expected):
        make_algorithm(name, {old: 0.5})


@pytest.mark.parametrize(
    "build, sentence",
    [
        (partial(make_algorithm, "gropo"), "algorithm.name is 'gropo'; did you mean grpo?"),
        (
            partial(make_algorithm, "iapo", {"information_wieght": 1.0}),
            "did you mean information_weight?",
        ),
        (partial(make_algorithm, "rloo", {"x": 1.0}), "options.x is unknown; rloo has none"),
        (
            partial(make_algorithm, "iapo", {"information_weight": "1"}),
            "information_weight is '1'; expected float",
        ),
        (
            partial(make_algorithm, "iapo", {"information_weight": True}),
            "information_weight is True; expected float",
        ),
        (partial(make_algorithm, "iapo_priced", {"only_correct": 1}), "is 1; expected bool"),
        (partial(make_algorithm, "gfpo", {"keep": 2.5}), "keep is 2.5; expected int, such as 0"),
        (partial(make_algorithm, "gfpo", {"quartiles": 1}), "options.quartiles is unknown"),
        (partial(make_algorithm, "dapo", {"max_length": 9}), "options.max_length is unknown"),
        (
            partial(make_algorithm, "iapo_ni", {"information_weight": 1.0}),
            "algorithm.options.information_weight cannot be set: iapo_ni is defined by",
        ),
        (
            partial(make_algorithm, "length_cap"),
            "algorithm.options.cap is missing; length_cap needs it (int)",
        ),
        (partial(make_algorithm, "length_cap", {"cap": "8"}), "cap is '8'; expected int"),
        (partial(make_algorithm, mine, {"strength": 1.0}), "cut is missing; mine needs it (int)"),
        (
            partial(make_algorithm, "grpo", adapt="prices"),
            "algorithm.adapt is 'prices'; expected one",
        ),
        (
            partial(make_algorithm, "iapo_priced", adapt="price_for_length"),
            "target_length is missing; algorithm.adapt=price_for_length needs it (float)",
        ),
        (
            partial(make_algorithm, "grpo", adapt="price_for_accuracy"),
            "algorithm.adapt is 'price_for_accuracy', but grpo has no price to adapt",
        ),
        (
            partial(make_algorithm, "iapo_priced", {"rate": -1.0}, adapt="price_for_accuracy"),
            "algorithm.options.rate is -1.0; expected more than 0",
        ),
        (partial(make_algorithm, "grpo", loss_type="gropo"), "loss_type is 'gropo'; did you mean"),
    ],
)
def test_make_algorithm_mistakes(build, sentence):
    with pytest.raises(ValueError) as caught:
        build()
    assert sentence in str(caught.value)


def test_equal_options_bind_to_one_object():
    """So that jit reuses its programs, whatever the names of the options."""

    def rule(group, key, *, make: float = 1.0, options: float = 2.0):
        return make, options

    one, other = (bind_options(rule, {"make": 3.0, "options": 4.0}) for _ in range(2))
    assert one is other and one(None, None) == (3.0, 4.0)
    assert (
        bind_options(rule, {"make": 3, "options": 4.0}) is not one
    )  # another type, another program
    assert bind_options(rule, {"make": [3.0]})(None, None) == (
        [3.0],
        2.0,
    )  # options without a hash are bound too
    assert bind_options(rule, {}) is rule


NEEDED = {
    "correct": "iapo iapo_ni iapo_ne iapo_shuffled iapo_random gtpo length_penalty length_cap "
    "l1_max",
    "log_prob": "iapo iapo_ni iapo_ne iapo_shuffled iapo_random",
    "entropy": "iapo_ne iapo_reference gtpo",
    "uncertainty": "iapo iapo_shuffled iapo_random iapo_reference iapo_priced",
    "thinking": "iapo iapo_ne iapo_shuffled iapo_random iapo_priced",
    "tokens": "iapo_shuffled iapo_random s_grpo",
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_group_needs_the_fields_of_its_rule_alone(usual, name):
    """Without one of these one sentence names it; the credit is the same without all others."""
    method = make_algorithm(name, OPTIONS.get(name), max_length=12)
    refused, bare = [], usual
    for field in NEEDED:
        try:
            jax.eval_shape(method.credit, usual._replace(**{field: None}), jax.random.key(0))
            bare = bare._replace(**{field: None})
        except ValueError as error:
            assert re.fullmatch(rf"\w+ needs Group.{field}, which is None", str(error)), error
            refused.append(field)
    assert refused == [field for field in NEEDED if name in NEEDED[field].split()]
    credit = jax.jit(method.credit)
    with_all = credit(usual, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, credit(bare, jax.random.key(0)), with_all)


def test_terms_without_weight_need_nothing(usual):
    bare = Group(usual.mask, usual.reward)
    got = iapo(bare, information_weight=0.0, exploration_weight=0)
    jax.tree.map(np.testing.assert_array_equal, got, advantages.grpo(usual))
    for name in ("uncertainty", "thinking"):
        with pytest.raises(ValueError, match=f"^Group.informativeness needs Group.{name}, which"):
            usual._replace(**{name: None}).informativeness  # noqa: B018
