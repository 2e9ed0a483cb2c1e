"""Checkpoints: what goes in comes out, on any mesh; which one a run resumes from."""

import dataclasses

import jax
import numpy as np
import pytest

from iapo_jax import update
from iapo_jax.checkpoint import Checkpoints, step_to_resume
from iapo_jax.config import OptimizerSection
from iapo_jax.errors import UserError
from iapo_jax.model import init_params
from iapo_jax.sharding import fetch, make_mesh

OPTIMIZER = update.make_optimizer(OptimizerSection(), 10)


@pytest.fixture(scope="module")
def build(tiny_config):
    """`build(mesh, seed)`: a state with moments and counters that are not zero."""

    shapes = jax.eval_shape(lambda: init_params(tiny_config, jax.random.key(0)))

    def make(mesh, seed=0):
        rng = np.random.default_rng(seed)
        fill = lambda x: jax.device_put(  # noqa: E731
            (9 * rng.random(x.shape)).astype(x.dtype), x.sharding
        )
        return jax.tree.map(fill, update.abstract_state(mesh, OPTIMIZER, shapes))

    return make


@pytest.fixture
def open_checkpoints(tmp_path):
    """Checkpoints of one directory, closed in the end."""
    opened = []

    def make(keep=0):
        opened.append(Checkpoints(tmp_path, keep))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def saved(checkpoints, **states):
    for name, state in states.items():
        checkpoints.save(int(name.removeprefix("step_")), state)
    checkpoints.close()


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, fetch(one), fetch(other))


def test_save_and_restore(open_checkpoints, build):
    mesh = make_mesh(1, 1, 1)
    saved(open_checkpoints(), step_3=build(mesh, 1))
    again = open_checkpoints()
    assert again.steps() == [3]
    restored = again.restore(3, build(mesh, 2))
    assert isinstance(restored, update.TrainState)
    assert_equal(restored, build(mesh, 1))


@pytest.mark.parametrize("before, after", [((2, 2, 2), (1, 2, 1)), ((1, 1, 1), (2, 2, 2))])
def test_restore_onto_another_mesh(open_checkpoints, build, before, after):
    saved(open_checkpoints(), step_1=build(make_mesh(*before), 1))
    mesh = make_mesh(*after)
    like = build(mesh, 2)
    restored = open_checkpoints().restore(1, like)
    assert_equal(restored, build(mesh, 1))
    same = jax.tree.map(
        lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), restored, like
    )
    assert all(jax.tree.leaves(same))
    kernel = restored.params["layers"]["gate"]["kernel"]
    assert len(kernel.sharding.device_set) == np.prod(after)
    assert not kernel.is_fully_replicated or np.prod(after) == 1


def test_shapes_with_shardings_are_enough(open_checkpoints, build):
    mesh = make_mesh(2, 2, 1)
    state = build(mesh, 1)
    saved(open_checkpoints(), step_1=state)
    like = update.abstract_state(mesh, OPTIMIZER, jax.eval_shape(lambda: state.params))
    assert_equal(open_checkpoints().restore(1, like), state)


def test_a_state_without_memory_is_written_as_before_there_was_any(open_checkpoints, build):
    checkpoints = open_checkpoints()
    state = build(make_mesh(1, 1, 1))
    assert state.memory == ()
    saved(checkpoints, step_1=state)
    again = open_checkpoints()
    assert sorted(again._manager.item_metadata(1).tree) == ["opt_state", "params", "step"]
    assert again.restore(1, state).memory == ()
    assert again.saved_memory(1, state.step.sharding) == ()


def test_only_the_newest_are_kept(open_checkpoints, build):
    state = build(make_mesh(1, 1, 1))
    saved(open_checkpoints(2), step_1=state, step_2=state, step_3=state)
    assert open_checkpoints(2).steps() == [2, 3]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"intermediate_size": 64},
            "opt_state.1.0.mu.layers.down.kernel is (2, 48, 32) there, (2, 64, 32) here",
        ),
        ({"tie_word_embeddings": False}, "opt_state.1.0.mu.head is absent there, (61, 32) here"),
    ],
)
def test_another_model_does_not_fit(open_checkpoints, build, tiny_config, change, sentence):
    mesh = make_mesh(1, 1, 1)
    saved(open_checkpoints(), step_1=build(mesh))
    other = dataclasses.replace(tiny_config, **change)
    shapes = jax.eval_shape(lambda: init_params(other, jax.random.key(0)))
    with pytest.raises(UserError) as caught:
        open_checkpoints().restore(1, update.abstract_state(mesh, OPTIMIZER, shapes))
    assert "checkpoints/1 does not fit this config: " + sentence in str(caught.value)


def test_resume_of_an_empty_directory(open_checkpoints):
    checkpoints = open_checkpoints()
    assert step_to_resume(checkpoints, "auto") is None
    assert step_to_resume(checkpoints, "never") is None
    with pytest.raises(UserError, match=r"resume is '3'; expected auto, never or .* steps \[\]"):
        step_to_resume(checkpoints, "3")


def test_resume_of_a_directory_with_checkpoints(open_checkpoints, build):
    state = build(make_mesh(1, 1, 1))
    saved(open_checkpoints(), step_2=state, step_10=state)
    checkpoints = open_checkpoints()
    assert step_to_resume(checkpoints, "auto") == 10
    assert step_to_resume(checkpoints, "2") == 2
    with pytest.raises(UserError, match=r"resume is never, but .*checkpoints holds .*\[2, 10\]"):
        step_to_resume(checkpoints, "never")
    for wrong in ("3", "-2", "latest", ""):
        with pytest.raises(UserError, match=r"expected auto, never or one of the steps \[2, 10\]"):
            step_to_resume(checkpoints, wrong)


def test_going_back_forgets_what_came_later(open_checkpoints, build):
    # Else the steps that are done again would find the old checkpoints in their place.
    mesh = make_mesh(1, 1, 1)
    first, second = build(mesh, 1), build(mesh, 2)
    saved(open_checkpoints(), step_2=first, step_4=first, step_6=first)
    checkpoints = open_checkpoints()
    checkpoints.forget_after(2)
    assert checkpoints.steps() == [2]
    saved(checkpoints, step_4=second)
    again = open_checkpoints()
    assert again.steps() == [2, 4]
    assert_equal(again.restore(4, first), second)
