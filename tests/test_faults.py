"""What a run survives: numbers that are not finite, signals, damaged and full disks."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import SafetensorError
from tiny_runs import completions, finished, make_world, reproducible, train_config

from iapo_jax.config.loading import load_config
from iapo_jax.config.sft import SftConfig
from iapo_jax.errors import FAILED, STOPPED, RunError, UserError
from iapo_jax.evaluation import sampling as evaluation
from iapo_jax.pretrained import weights
from iapo_jax.pretrained.loaded_model import open_mesh
from iapo_jax.runtime import interruption
from iapo_jax.runtime.cli import exit_code
from iapo_jax.runtime.files import read_jsonl
from iapo_jax.runtime.interruption import Stopped
from iapo_jax.runtime.locks import file_lock
from iapo_jax.sft import train_sft
from iapo_jax.train import train
from iapo_jax.training import progress, step
from iapo_jax.training.checkpoint import Checkpoints
from iapo_jax.training.model_sources import load_checkpoint
from iapo_jax.training.run_writer import RunWriter
from iapo_jax.types import Credit

# The shapes are those of other tests of training, whose compiled programs serve here, too.
QUICK = (
    "eval.dataset=''",
    "save_steps=1",
    "log.save_total_limit=0",
    "selection.problems=4",
    "selection.prompts_per_batch=4",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory, root):
    """The tiny model's folder."""
    return make_world(tmp_path_factory.mktemp("world"), root)


@pytest.fixture(scope="module")
def configure(world, root):
    return lambda directory, *more: train_config(world, root, directory, *QUICK, *more)


@pytest.fixture(scope="module")
def calm(configure, tmp_path_factory):
    """A run without faults: 4 steps."""
    directory = tmp_path_factory.mktemp("calm")
    return finished(directory, train(configure(directory)))


@pytest.fixture
def half(calm, configure, tmp_path):
    """A copy of that run as it was after step 2."""
    directory = tmp_path / "run"
    shutil.copytree(calm.directory, directory)
    for later in ("3", "4"):
        shutil.rmtree(directory / "checkpoints" / later)
    return directory


def digests_of(directory, number):
    path = directory / "checkpoints" / str(number) / "_CHECKPOINT_METADATA"
    return json.loads(path.read_text())["custom_metadata"]["digests"]


def assert_same_steps(run, calm):
    """Bit for bit, with every row once."""
    assert digests_of(run.directory, 4) == digests_of(calm.directory, 4)
    assert list(map(reproducible, run.rows)) == list(map(reproducible, calm.rows))
    for number in (1, 2, 3, 4):
        assert completions(run, number) == completions(calm, number)


def assert_same(run, calm):
    """The same steps, and the same choice among the checkpoints."""
    assert_same_steps(run, calm)
    for name in ("selection.jsonl", "hf/model.safetensors"):
        assert (run.directory / name).read_bytes() == (calm.directory / name).read_bytes()


# Numbers that are not finite


@pytest.fixture
def spoil(monkeypatch):
    """`spoil("uncertainty", [2])`: NaN in that signal of the second step from now."""

    def patch(name, steps):
        calls = []
        inner = step.compute_signals

        def outer(*args, **keywords):
            calls.append(None)
            signals = inner(*args, **keywords)
            if len(calls) in steps:
                x = getattr(signals, name)
                signals = signals._replace(**{name: x.at[0, 0, 0].set(jnp.nan)})
            return signals

        monkeypatch.setattr(step, "compute_signals", outer)

    return patch


@pytest.mark.parametrize("name", ["uncertainty", "log_prob"])
def test_a_step_that_is_not_finite_changes_nothing(configure, tmp_path, spoil, name):
    spoil(name, [2])
    run = finished(tmp_path, train(configure(tmp_path, "selection.problems=0")))
    first, second, third, _ = run.rows
    assert first["skipped/updates"] == first["skipped/in_a_row"] == 0
    assert second["skipped/updates"] == second["skipped/in_a_row"] == 1
    assert second["loss"] is None and second["grad_norm"] is None
    assert third["skipped/updates"] == third["skipped/in_a_row"] == 0
    assert [row["learning_rate"] for row in run.rows] == [1e-2] * 4
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    config = configure(tmp_path)
    mesh = open_mesh(config.mesh)
    one, two = (load_checkpoint(tmp_path, str(n), mesh=mesh).params for n in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert int(run.state.updates) == 3
    folder = tmp_path / "skipped"
    assert sorted(p.name for p in folder.iterdir()) == [
        f"step_2.{s}" for s in ("json", "jsonl", "npz")
    ]
    why = json.loads((folder / "step_2.json").read_text())
    assert why["step"] == 2 and why[name] == 1
    with np.load(folder / "step_2.npz") as arrays:
        assert np.isnan(arrays[f"signals.{name}"]).sum() == 1
        shapes = {
            key: arrays[key].shape[:2] for key in arrays if key.startswith(("roll", "credit"))
        }
        assert len(shapes) >= 6 and set(shapes.values()) == {(8, 4)}
        assert len(arrays["rows"]) == 8
    assert read_jsonl(folder / "step_2.jsonl") == completions(run, 2)


def huge(group, key):
    """Finite credit whose gradient is not."""
    return Credit(jnp.where(group.mask, 3e38, 0.0), group.mask.astype(jnp.float32))


def test_an_endless_streak_ends_the_run(configure, tmp_path, capsys):
    config = configure(tmp_path, "max_skipped=2", "selection.problems=0", "algorithm.name=grpo")
    assert exit_code(lambda: train(config, advantage=huge)) == FAILED
    said = capsys.readouterr().err
    assert "stopped: 2 consecutive steps up to step 2 had non-finite values" in said
    assert "(updates)" in said and "before the skipped steps: none; skipped batches: " in said
    assert said.count("error: ") == 1 and "Traceback" not in said
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row["skipped/in_a_row"] for row in rows] == [1, 2]
    why = json.loads((tmp_path / "skipped" / "step_2.json").read_text())
    assert why["updates"][0]["update"] == 0
    assert not np.isfinite(float(why["updates"][0]["grad_norm"]))
    notes = [Checkpoints(tmp_path).notes(number) for number in (1, 2)]
    assert [one["skipped_in_a_row"] for one in notes] == [1, 2]
    # The saved model is unchanged, and training resumes with a rule that works.
    run = finished(tmp_path, train(config))
    assert [row["skipped/in_a_row"] for row in run.rows] == [1, 2, 0, 0]
    assert int(run.state.updates) == 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.params))


def test_parameters_that_explode_are_not_taken(configure, tmp_path):
    options = ("optimizer.learning_rate=1e30", "log.save_total_limit=1", "max_skipped=2")
    with pytest.raises(
        RunError, match="2 consecutive steps up to step 2 .* before the skipped steps: none"
    ):
        train(configure(tmp_path, *options))
    found = load_checkpoint(tmp_path, mesh=open_mesh(configure(tmp_path).mesh))
    start = weights.load_params(found.pretrained.directory, found.pretrained.config)
    jax.tree.map(np.testing.assert_array_equal, found.params, start)


def test_the_checkpoint_before_a_streak_is_kept(configure, tmp_path, spoil):
    spoil("uncertainty", [2, 3, 4])
    with pytest.raises(RunError, match="Last checkpoint: 4; .* before the skipped steps: 1;"):
        train(configure(tmp_path, "log.save_total_limit=1", "max_skipped=3"))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "4"]


def test_a_skipped_step_is_no_memory(configure, tmp_path):
    adapt = ("algorithm.name=gfpo", "algorithm.adapt=keep_for_difficulty", "max_skipped=2")
    options = (*adapt, "algorithm.options={start_questions: 4}", "selection.problems=0")
    with pytest.raises(RunError, match=r"non-finite values \(updates\)"):
        train(configure(tmp_path, *options), advantage=huge)
    first, second = (digests_of(tmp_path, number) for number in (1, 2))
    remembered = [name for name in first if name.startswith("memory")]
    assert remembered and first == second


def test_fine_tuning_skips_too(world, tmp_path):
    rows = [{"question": f"{a}+1", "completion": [["1</think>", 3e38]]} for a in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = [
        f"output_dir={tmp_path / 'run'}",
        f"model.path={world / 'model'}",
        f"data.dataset={tmp_path / 'rows.jsonl'}",
        "batch.rows_per_step=4",
        "max_steps=4",
        "max_skipped=2",
        "log.progress=false",
        "log.tensorboard=false",
        "log.compilation_cache=''",
        "mesh.data=1",
    ]
    with pytest.raises(RunError, match="2 consecutive steps up to step 2 .* \\((loss|grad_norm)"):
        train_sft(load_config(SftConfig, None, config))
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["skipped/updates"] for row in rows] == [1, 1]
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert len(read_jsonl(tmp_path / "run" / "skipped" / "step_2.jsonl")) == 4


# A reward function that fails later, and signals


def test_a_reward_that_fails_later_loses_nothing(configure, tmp_path, calm, world, capsys):
    calls = []

    def digits(prompts, completions, answer, **columns):
        calls.append(None)
        if len(calls) == 4:  # once before the run, then once a step
            raise OSError("the sandbox is gone")
        return [sum(letter.isdigit() for letter in text) / 4 for text in completions]

    config = configure(tmp_path, "save_steps=0")
    assert exit_code(lambda: train(config, reward_functions=[digits])) == FAILED
    printed = capsys.readouterr()
    assert "'digits' raised OSError('the sandbox is gone')" in printed.err
    assert f"step 2 of 4 is saved in {tmp_path / 'checkpoints'}" in printed.out
    assert os.listdir(tmp_path / "checkpoints") == ["2"]
    run = finished(tmp_path, train(configure(tmp_path, "save_steps=0"), reward_functions=[digits]))
    assert_same_steps(run, calm)


def test_a_stop_is_no_loss(configure, tmp_path, calm, monkeypatch):
    asked = []
    monkeypatch.setattr(progress, "stop_requested", lambda: asked.append(None) or len(asked) == 2)
    with pytest.raises(
        Stopped, match="step 2 of 4 is saved in .*; run the same command to resume$"
    ):
        train(configure(tmp_path, "save_steps=4"))
    assert os.listdir(tmp_path / "checkpoints") == ["2"]
    assert_same_steps(finished(tmp_path, train(configure(tmp_path, "save_steps=4"))), calm)


def test_a_stop_of_a_run_that_refuses_to_resume(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "stop_requested", lambda: True)
    with pytest.raises(Stopped, match="run the same command with resume=auto to resume$"):
        train(configure(tmp_path, "resume=never"))


def test_a_stop_while_a_checkpoint_is_measured(configure, tmp_path, calm, monkeypatch):
    measuring = configure(tmp_path, "selection.num_samples=1", "selection.prompts_per_batch=2")
    asked = []
    monkeypatch.setattr(evaluation, "stop_requested", lambda: asked.append(None) or len(asked) == 3)
    with pytest.raises(Stopped, match="selecting, step 2: 2 of 4 completions have been sampled"):
        train(measuring)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["1", "2"]
    assert_same(finished(tmp_path, train(measuring)), calm)


def test_signals_are_heard_once(capfd):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def work():
        assert not interruption.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.stop_requested()
        # The second signal is no longer handled by Python: it ends the process at once.
        assert {signal.getsignal(each) for each in before} == {signal.SIG_DFL}
        raise Stopped("all is well")

    def command():
        with interruption.handling_signals():
            work()

    assert exit_code(command) == STOPPED
    assert {each: signal.getsignal(each) for each in before} == before
    said = capfd.readouterr().err
    assert "SIGTERM: stopping after the current step; a second signal stops at once" in said
    assert said.endswith("stopped by SIGTERM: all is well\n")
    assert exit_code(lambda: None) == 0
    with interruption.handling_signals():
        assert not interruption.stop_requested()


def test_a_signal_in_the_last_step_of_one_piece_of_work_ends_the_next_ones(capfd):
    with interruption.handling_signals():
        with interruption.handling_signals():
            os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.stop_requested()
        with interruption.handling_signals():
            assert interruption.stop_requested()
    with interruption.handling_signals():
        assert not interruption.stop_requested()
    assert "SIGTERM: stopping" in capfd.readouterr().err


# Storage


def test_damage_is_named_and_the_newest_whole_checkpoint_taken(half, configure, calm, capsys):
    shutil.copytree(calm.directory / "checkpoints" / "3", half / "checkpoints" / "3")
    largest = max((half / "checkpoints" / "3").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    (half / "completions" / "step_9.jsonl").write_text("of a longer run\n")
    with pytest.raises(UserError, match="checkpoints/3 is damaged: "):
        train(configure(half, "resume=3"))
    run = finished(half, train(configure(half)))
    told = capsys.readouterr().out
    assert f"note: checkpoint {half / 'checkpoints' / '3'} is damaged: " in told
    assert f"moved to {half / 'damaged' / '3'}" in told
    assert f"resuming from step 2 of {half / 'checkpoints'}" in told
    assert (half / "damaged" / "3" / largest.relative_to(half / "checkpoints" / "3")).is_file()
    assert sorted(os.listdir(half / "checkpoints")) == ["1", "2", "3", "4"]
    assert not (half / "completions" / "step_9.jsonl").exists()
    assert_same(run, calm)
    source = load_checkpoint(half, mesh=open_mesh(configure(half).mesh))
    jax.tree.map(np.testing.assert_array_equal, source.params, jax.tree.map(np.asarray, run.params))


def test_two_runs_do_not_share_a_directory(half, configure, capsys):
    files = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    with file_lock(half / ".lock", instead="another", sign=True):
        files[half / ".lock"] = (half / ".lock").read_bytes()
        with pytest.raises(UserError) as caught:
            train(configure(half))
    assert f"{half}/.lock is in use by another process (process {os.getpid()} on " in str(
        caught.value
    )
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, code):
    def refuse(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with file_lock(tmp_path / ".lock", instead="another", sign=True) as locked:
            assert locked is False


def test_a_disk_without_room_is_told_before(half, configure, monkeypatch):
    usage = SimpleNamespace(total=10**9, used=10**9, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(UserError, match="9.31e-07 GiB free, but a checkpoint takes .* GiB"):
        train(configure(half))


def test_a_disk_that_fills_up_is_told(half, configure, calm, monkeypatch, capsys):
    inner = RunWriter.metrics

    def full(self, number, values):
        if number == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(self, number, values)

    monkeypatch.setattr(RunWriter, "metrics", full)
    assert exit_code(lambda: train(configure(half))) == FAILED
    said = capsys.readouterr().err
    assert said == f"error: {half} cannot be written: [Errno 28] No space left on device\n"
    monkeypatch.setattr(RunWriter, "metrics", inner)
    assert sorted(os.listdir(half / "checkpoints")) == ["1", "2", "3"]
    assert_same(finished(half, train(configure(half))), calm)


def test_a_disk_that_is_full_in_earnest(half, configure, calm, capfd):
    """No file may grow beyond a size: a row of metrics is cut off in its middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (half / "metrics.jsonl").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2 + size // 8, before[1]))
        code = exit_code(lambda: train(configure(half, "save_steps=0", "log.tensorboard=true")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    said = capfd.readouterr().err
    assert code == FAILED and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith(f"error: {half} cannot be written: ")
    assert_same(finished(half, train(configure(half))), calm)


def test_another_command_has_another_directory(half, world, configure, capsys):
    options = [f"output_dir={half}", f"model.path={world / 'model'}", "log.compilation_cache=''"]
    (half / "rows.jsonl").write_text('{"question": "1+1", "completion": "2"}\n')
    config = load_config(
        SftConfig, None, [*options, f"data.dataset={half / 'rows.jsonl'}", "batch.rows_per_step=8"]
    )
    with pytest.raises(
        UserError, match="contains a run of iapo_jax.train; expected a run of iapo_jax.s"
    ):
        train_sft(config)
    train(configure(half, "max_steps=2", "optimizer.learning_rate=1e-3"))
    told = "note: these fields have changed since the run was last started: optimizer.learning_rate"
    assert told in capsys.readouterr().out


def test_rows_that_are_missing_are_said(half, configure, capsys):
    path = half / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    train(configure(half))
    told = f"note: {path} has 1 rows up to the checkpoint; expected 2, the number when it was saved"
    assert told in capsys.readouterr().out


def test_an_export_without_room_leaves_the_earlier_one(half, configure, calm, monkeypatch, capsys):
    def full(tensors, path, metadata):
        path.write_bytes(b"half a file")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    before = (half / "hf" / "model.safetensors").read_bytes()
    inner = weights.save_file
    monkeypatch.setattr(weights, "save_file", full)
    assert exit_code(lambda: train(configure(half))) == FAILED
    said = capsys.readouterr().err
    assert said.startswith(f"error: {half / 'hf'} cannot be written: {half / 'hf.partial'}")
    assert "No space left on device" in said and said.count("\n") == 1
    assert (half / "hf" / "model.safetensors").read_bytes() == before
    monkeypatch.setattr(weights, "save_file", inner)
    assert_same(finished(half, train(configure(half))), calm)
    assert not list(half.glob("hf.*"))


def test_a_damaged_row_of_metrics_is_named(half, configure):
    path = half / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(UserError, match=f"{path}, line 1 is not JSON: "):
        train(configure(half))
