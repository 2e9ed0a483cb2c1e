"""A run saved on some devices goes on elsewhere: fewer, more, another mesh, another micro-batch."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from tiny_runs import assert_same_run, completions, finished, make_world, train_config

from iapo_jax.config.loading import load_config
from iapo_jax.config.sft import SftConfig
from iapo_jax.sft import train_sft
from iapo_jax.train import train

pytestmark = pytest.mark.nightly

STEPS, SAVED = 4, 2
# The parts of a run that the topology could affect: a reference (KL), clipping by the norm of the
# whole gradient, and hyper-parameters that remember the groups so far.
TINY = (
    "eval.dataset=''",
    f"max_steps={STEPS}",
    f"save_steps={SAVED}",
    "sampling.max_completion_length=8",
    "algorithm.name=gfpo",
    "algorithm.beta=0.04",
    "algorithm.adapt=keep_for_difficulty",
    "algorithm.options={start_questions: 8}",
)
EIGHT = "mesh.data=2 mesh.fsdp=2 mesh.tensor=2"
# Where a run saved on eight devices goes on.
ELSEWHERE = {
    "one": "mesh.data=1",
    "two": "mesh.data=1 mesh.fsdp=2 batch.micro_batch_size=4",
    "four": "mesh.data=2 mesh.tensor=2 batch.micro_batch_size=2",
}
SUMS = [
    {"question": f"{a}+{b}", "completion": f"{a}+{b}={a + b}</think><answer>{a + b}</answer>"}
    for a in range(4)
    for b in range(6)
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, root):
    """The tiny model's folder, with rows to imitate."""
    folder = make_world(tmp_path_factory.mktemp("world"), root, num_hidden_layers=1)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    return folder


def sft_config(world, output_dir, *overrides):
    """STEPS steps of eight rows."""
    base = [
        f"output_dir={output_dir}",
        f"model.path={world / 'model'}",
        f"data.dataset={world / 'rows.jsonl'}",
        f"max_steps={STEPS}",
        f"save_steps={SAVED}",
        "batch.rows_per_step=8",
        "optimizer.learning_rate=1e-2",
        "optimizer.lr_scheduler_type=constant",
        "optimizer.adam_epsilon=1e-3",  # see tiny_runs: rounding must not become a step
        "log.compilation_cache=''",
        "log.progress=false",
        "log.tensorboard=false",
    ]
    return load_config(SftConfig, None, [*base, *overrides])


@pytest.fixture(scope="module")
def go(world, root):
    """`go(loop, directory, "key=value", ...)` runs a loop, train or sft, to its end."""

    def run(loop, directory, *overrides):
        if loop == "sft":
            return finished(directory, train_sft(sft_config(world, directory, *overrides)))
        return finished(directory, train(train_config(world, root, directory, *TINY, *overrides)))

    return run


@pytest.fixture(scope="module")
def on_one(go, tmp_path_factory):
    """`on_one(loop)`: the uninterrupted run that all others are compared with, on one device."""
    return functools.cache(lambda loop: go(loop, tmp_path_factory.mktemp("one"), "mesh.data=1"))


@pytest.fixture(scope="module")
def on_eight(go, tmp_path_factory):
    """`on_eight(loop)`: a run on eight devices that ended after SAVED steps."""
    short = (f"max_steps={SAVED}", *EIGHT.split())
    return functools.cache(lambda loop: go(loop, tmp_path_factory.mktemp("eight"), *short))


@pytest.fixture
def go_on(go, tmp_path):
    """`go_on(loop, run, "key=value ...")` goes on with a copy of a run's directory after SAVED."""

    def run(loop, saved, overrides):
        shutil.copytree(saved.directory, tmp_path / "run")
        return go(loop, tmp_path / "run", f"resume={SAVED}", *overrides.split())

    return run


def assert_the_same(run, straight):
    """Metrics, parameters, moments and adaptation within 1e-5; every completion."""
    assert [row["step"] for row in run.rows] == list(range(1, STEPS + 1))
    assert run.state.updates == straight.state.updates == STEPS
    assert_same_run(run, straight, atol=1e-5)
    for step in range(1, STEPS + 1) if (straight.directory / "completions").is_dir() else ():
        assert completions(run, step) == completions(straight, step)
    for field in ("opt_state", "adaptation"):
        found, expected = (jax.tree.leaves(getattr(x.state, field)) for x in (run, straight))
        assert len(found) == len(expected) and (field == "adaptation" or len(found) > 4)
        for one, other in zip(found, expected, strict=True):
            # Of moments by their own size: those of squares are far below 1e-5.
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("loop", ["train", "sft"])
def test_saved_on_eight_devices_it_goes_on_elsewhere(on_one, on_eight, go_on, loop, place):
    saved = on_eight(loop)
    assert len(saved.rows) == SAVED
    assert_the_same(go_on(loop, saved, ELSEWHERE[place]), on_one(loop))


@pytest.mark.parametrize("loop", ["train", "sft"])
def test_saved_on_one_device_it_goes_on_on_eight(on_one, go_on, loop):
    run = go_on(loop, on_one(loop), EIGHT)
    assert_the_same(run, on_one(loop))
    # A different program ran, and no rows were copied: rounding differs somewhere.
    pairs = zip(jax.tree.leaves(run.params), jax.tree.leaves(on_one(loop).params), strict=True)
    assert any((a != b).any() for a, b in pairs)
