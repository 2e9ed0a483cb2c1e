"""Checkpoints: what goes in comes out, on any mesh; which one a run resumes from."""

import dataclasses
import json
import resource
import signal

import jax
import numpy as np
import pytest
from before_jax import MESHES

from iapo_jax.config.sections import OptimizerSection
from iapo_jax.errors import RunError, UserError
from iapo_jax.model.checksums import digests
from iapo_jax.model.decoder import param_shapes
from iapo_jax.sharding import fetch, make_mesh
from iapo_jax.training import optimizer as update
from iapo_jax.training.checkpoint import Checkpoints, DamagedCheckpoint, step_to_resume

OPTIMIZER = update.make_optimizer(OptimizerSection(), 10)


@pytest.fixture(scope="module")
def build(tiny_config):
    """`build(mesh, seed)`: a state with moments and counters that are not zero."""

    shapes = param_shapes(tiny_config)

    def make(mesh, seed=0):
        rng = np.random.default_rng(seed)

        def fill(x):
            return jax.device_put((9 * rng.random(x.shape)).astype(x.dtype), x.sharding)

        return jax.tree.map(fill, update.abstract_state(mesh, OPTIMIZER, shapes))

    return make


@pytest.fixture
def open_checkpoints(tmp_path):
    """Checkpoints of one directory, closed in the end."""
    opened = []

    def make(keep=0):
        opened.append(Checkpoints(tmp_path, keep, writes=True))
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


@pytest.mark.parametrize("before, after", [(MESHES[0], MESHES[1]), ((1, 1, 1), MESHES[2])])
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
    mesh = make_mesh(*MESHES[1])
    state = build(mesh, 1)
    saved(open_checkpoints(), step_1=state)
    like = update.abstract_state(mesh, OPTIMIZER, jax.eval_shape(lambda: state.params))
    assert_equal(open_checkpoints().restore(1, like), state)


def test_a_state_without_memory_is_written_as_before_there_was_any(open_checkpoints, build):
    checkpoints = open_checkpoints()
    state = build(make_mesh(1, 1, 1))
    assert state.adaptation == ()
    saved(checkpoints, step_1=state)
    again = open_checkpoints()
    metadata = json.loads((again.directory / "1" / "_CHECKPOINT_METADATA").read_text())
    names = {name.partition(".")[0] for name in metadata["custom_metadata"]["digests"]}
    assert names == {"opt_state", "params", "step"}
    assert again.restore(1, state).adaptation == ()
    assert again.saved_adaptation(1, state.updates.sharding) == ()


def test_only_the_newest_are_kept(open_checkpoints, build):
    state = build(make_mesh(1, 1, 1))
    saved(open_checkpoints(2), step_1=state, step_2=state, step_3=state)
    assert open_checkpoints(2).steps() == [2, 3]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (
            {"intermediate_size": 64},
            "mu.layers.down.kernel has shape (2, 48, 32) in the checkpoint; expected shape (2, 64,",
        ),
        (
            {"tie_word_embeddings": False},
            "opt_state.1.0.mu.head is absent in the checkpoint; expected shape (61, 32)",
        ),
    ],
)
def test_another_model_does_not_fit(open_checkpoints, build, tiny_config, change, sentence):
    mesh = make_mesh(1, 1, 1)
    saved(open_checkpoints(), step_1=build(mesh))
    other = dataclasses.replace(tiny_config, **change)
    shapes = param_shapes(other)
    with pytest.raises(UserError) as caught:
        open_checkpoints().restore(1, update.abstract_state(mesh, OPTIMIZER, shapes))
    assert "checkpoints/1 does not match this config: opt_state.1.0." in str(caught.value)
    assert sentence in str(caught.value)


def test_resume_of_an_empty_directory(open_checkpoints):
    checkpoints = open_checkpoints()
    assert step_to_resume(checkpoints, "auto") is None
    assert step_to_resume(checkpoints, "never") is None
    with pytest.raises(UserError, match=r"resume is '3', but .* has no checkpoints"):
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
    # Otherwise repeated steps would find the old checkpoints in their place.
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


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * at), len(content) - 1)] ^= 0x10
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped at the start": lambda path: flip(path, 0.0),
    "flipped": flip,
    "flipped near the end": lambda path: flip(path, 0.9),
    "gone": lambda path: path.unlink(),
}
# Each reads all files again; the gate has the like of these.
MARKS = dict.fromkeys(
    ("emptied", "flipped at the start", "flipped near the end"), pytest.mark.nightly
)


# orbax leaves coroutines behind where a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage", [pytest.param(DAMAGE[name], id=name, marks=MARKS.get(name, ())) for name in DAMAGE]
)
def test_damage_to_any_file_is_found(open_checkpoints, build, damage, tmp_path):
    mesh = make_mesh(1, 1, 1)
    states = {"step_1": build(mesh, 1), "step_2": build(mesh, 2)}
    saved(open_checkpoints(), **states)
    newest = tmp_path / "checkpoints" / "2"
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(files) > 5
    found = 0
    for path in files:
        before = path.read_bytes()
        damage(path)
        # Only changes to files that do not describe the arrays may go unnoticed.
        try:
            assert_equal(open_checkpoints().restore(2, states["step_1"]), states["step_2"])
        except DamagedCheckpoint as told:
            found += 1
            assert f"checkpoint {newest} is damaged: " in str(told) and "\n" not in str(told)
            if found == 1:

                def like(_):
                    return states["step_1"]

                step, state, damaged = open_checkpoints().restore_undamaged([2, 1], like)
                assert step == 1 and list(map(type, damaged)) == [DamagedCheckpoint]
                assert_equal(state, states["step_1"])
        path.write_bytes(before)
    assert found >= (1 if damage is DAMAGE["flipped near the end"] else 3)
    assert open_checkpoints().restore_undamaged([2, 1], lambda _: states["step_1"])[0] == 2


def test_every_bit_of_an_array_counts(build):
    tree = build(make_mesh(1, 1, 1), 1)._asdict()
    before = digests(tree)
    for leaf, bit in (("updates", 0), ("params", 31), ("params", 0)):
        changed = fetch(dict(tree))
        kernel = changed["params"]["layers"]["up"]["kernel"]
        array = kernel if leaf == "params" else changed[leaf]
        flat = np.array(array).reshape(-1)
        flat.view(np.uint32)[-1] ^= np.uint32(1 << bit)
        whole = flat.reshape(array.shape)
        if leaf == "updates":
            changed["updates"] = whole
        else:
            changed["params"]["layers"]["up"]["kernel"] = whole
        after = digests(jax.tree.map(jax.numpy.asarray, changed))
        assert sum(after[name] != before[name] for name in before) == 1


def test_a_checkpoint_without_its_digests_is_not_trusted(open_checkpoints, build, tmp_path):
    state = build(make_mesh(1, 1, 1))
    saved(open_checkpoints(), step_1=state)
    path = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    told = json.loads(path.read_text())
    del told["custom_metadata"]
    path.write_text(json.dumps(told))
    with pytest.raises(DamagedCheckpoint, match="the checksums of its arrays are missing"):
        open_checkpoints().restore(1, state)


def test_no_undamaged_checkpoint_is_one_sentence(open_checkpoints, build, tmp_path):
    state = build(make_mesh(1, 1, 1))
    saved(open_checkpoints(), step_1=state, step_2=state)
    for path in (tmp_path / "checkpoints").rglob("*METADATA"):
        path.write_bytes(b"{")
    with pytest.raises(UserError, match="has no intact checkpoint: .*/2 is damaged.*/1 is damaged"):
        open_checkpoints().restore_undamaged([2, 1], lambda _: state)


def test_the_best_stays_beside_the_newest(open_checkpoints, build):
    state, checkpoints = build(make_mesh(1, 1, 1)), open_checkpoints(1)
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4), (5, 4)):
        checkpoints.save(step, state, {best})
    checkpoints.close()
    assert open_checkpoints(1).steps() == [4, 5]


def test_what_cannot_be_written_leaves_the_earlier_ones(open_checkpoints, build, tmp_path):
    """The disk is full, as far as a limit on the size of files can imitate that."""
    mesh = make_mesh(1, 1, 1)
    state, checkpoints = build(mesh, 1), open_checkpoints(1)
    checkpoints.save(1, state)
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(RunError) as caught:
            checkpoints.save(2, build(mesh, 2))
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    said = str(caught.value)
    assert "checkpoints/2 could not be written: " in said and "\n" not in said
    assert said.endswith("; complete checkpoints: [1]")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert_equal(open_checkpoints().restore(1, state), state)
    checkpoints.close()  # does not repeat the error
    again = open_checkpoints(1)  # and when there is room again
    again.save(2, build(mesh, 2))
    again.close()
    assert_equal(open_checkpoints().restore(2, state), build(mesh, 2))


def test_leftovers_of_a_killed_run_go(open_checkpoints, build, tmp_path):
    state = build(make_mesh(1, 1, 1))
    saved(open_checkpoints(), step_1=state)
    leftover = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"half")
    reader = Checkpoints(tmp_path)
    assert reader.steps() == [1]
    assert leftover.is_dir()  # it may be of a run that is alive
    assert open_checkpoints().steps() == [1]
    assert not leftover.exists()


def test_what_is_noted_is_sealed(open_checkpoints, build, tmp_path):
    checkpoints, state = open_checkpoints(), build(make_mesh(1, 1, 1))
    checkpoints.save(1, state, notes={"rows": 3})
    checkpoints.close()
    assert open_checkpoints().notes(1) == {"rows": 3}
    path = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"rows": 3', '"rows": 4'))
    with pytest.raises(DamagedCheckpoint, match="its metadata does not match its checksum"):
        open_checkpoints().restore(1, state)


def test_a_folder_that_is_no_checkpoint(open_checkpoints, build, tmp_path):
    state = build(make_mesh(1, 1, 1))
    saved(open_checkpoints(), step_1=state)
    (tmp_path / "checkpoints" / "7").mkdir()
    (tmp_path / "checkpoints" / "notes").mkdir()
    step, _, (told,) = open_checkpoints().restore_undamaged([7, 1], lambda _: state)
    assert step == 1 and str(told).endswith("/7 is damaged: it has no _CHECKPOINT_METADATA")


def test_fields_keep_their_names_on_disk(open_checkpoints, build):
    """Checkpoints of the first release have `step` and `memory`; renamed fields still find them."""
    state = build(make_mesh(1, 1, 1))._replace(adaptation={"price": jax.numpy.float32(0.5)})
    saved(open_checkpoints(), step_1=state)
    folder = open_checkpoints().directory / "1"
    written = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    top = {name.partition(".")[0] for name in written["digests"]}
    assert top == {"step", "params", "opt_state", "memory"}
    restored = open_checkpoints().restore(1, state)
    assert restored._fields == ("updates", "params", "opt_state", "adaptation")
    assert_equal(restored, state)
