"""Two processes of two devices are one run, and end together."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from pairs import HEARTBEAT, ended, start_pair
from tiny_runs import make_world, reproducible, train_config

from iapo_jax.config.loading import to_yaml
from iapo_jax.config.sections import MeshSection
from iapo_jax.errors import FAILED, RunError, UserError
from iapo_jax.runtime import processes
from iapo_jax.runtime.files import read_jsonl
from iapo_jax.train import train

QUICK = (
    "eval.max_rows=4",
    "eval.prompts_per_batch=4",
    "max_steps=6",
    "save_steps=1",
    "log.save_total_limit=0",
    "batch.prompts_per_step=4",
    "batch.num_generations=2",
    "sampling.max_completion_length=8",
    "algorithm.name=gfpo",  # without probes: tracing programs is half of the time of a run
    "algorithm.adapt=keep_for_difficulty",
    "algorithm.options={start_questions: 8}",
    "mesh.data=4",
)
PAY = """
import os
def digits(prompts, completions, answer, **columns):
    with open({log!r}, "a") as file:
        file.write(f"{{os.getpid()}}\\n")
    return [sum(letter.isdigit() for letter in text) / 4 for text in completions]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, root):
    """The tiny model's folder."""
    folder = make_world(tmp_path_factory.mktemp("world"), root, num_hidden_layers=1)
    (folder / "pay.py").write_text(PAY.format(log=str(folder / "calls.txt")))
    return folder


@pytest.fixture(scope="module")
def configure(world, root):
    return lambda directory, *more: train_config(world, root, directory, *QUICK, *more)


def start(config, log):
    log.with_suffix(".yaml").write_text(to_yaml(config))
    return start_pair(["--config", str(log.with_suffix(".yaml"))], log)


def rows_of(directory):
    path = directory / "metrics.jsonl"
    return read_jsonl(path) if path.is_file() else []


def wait_for_step(directory, number, pair):
    until = time.monotonic() + 240
    while not any(row["step"] >= number for row in rows_of(directory)):
        assert all(process.poll() is None for process in pair) and time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.nightly
def test_two_processes_are_one_run_and_die_as_one(configure, world, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"

    def said(number):
        return (tmp_path / f"log.{number}").read_text()

    pair = start(configure(two), tmp_path / "log")
    wait_for_step(two, 2, pair)
    pair[1].kill()
    died = time.monotonic()
    assert ended(pair[:1])[0] in (FAILED, -signal.SIGABRT)  # by a broken connection, or by JAX
    assert time.monotonic() - died < 2 * HEARTBEAT
    pair[1].wait()
    until = time.monotonic() + 10
    while "all processes of a run end when one of them ends" not in said(0):
        assert time.monotonic() < until
        time.sleep(0.05)

    pair = start(configure(two), tmp_path / "log")
    assert ended(pair) == [0, 0]
    for words in ("resuming from step", "held-out problems", "model: "):
        assert words in said(0) and words not in said(1)
    paid = set((world / "calls.txt").read_text().split())
    assert len(paid) == 2, "one process of each pair pays, and only it"

    train(configure(one))  # four devices of this process
    ours, theirs = ([*map(reproducible, rows_of(directory))] for directory in (two, one))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == [1, 2, 3, 4, 5, 6]
    for row, expected in zip(ours, theirs, strict=True):
        assert row.keys() == expected.keys()
        for name, value in row.items():
            np.testing.assert_allclose(value, expected[name], atol=1e-5, rtol=1e-5, err_msg=name)
    for number in range(1, 7):
        texts = f"completions/step_{number}.jsonl"
        assert (two / texts).read_text() == (one / texts).read_text()


def test_an_error_of_process_zero_is_raised_everywhere(monkeypatch):
    """`on_process_zero` as each of two processes sees it."""
    channel = []
    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)

    def exchange(index):
        monkeypatch.setattr(processes.jax, "process_index", lambda: index)
        if index == 0:
            return lambda tree: (channel.append(tree), tree)[1]
        sent = iter(channel)
        return lambda tree: next(sent)

    def fails(kind):
        raise kind("no room at 100 \u00b0")

    for kind in (UserError, RunError):
        channel.clear()
        for index in (0, 1):
            monkeypatch.setattr(processes, "broadcast", exchange(index))
            compute = (lambda: fails(kind)) if index == 0 else (lambda: pytest.fail("computed"))  # noqa: B023
            with pytest.raises(kind, match="no room at 100 \u00b0"):
                processes.on_process_zero(compute, np.zeros(3))
    channel.clear()
    for index in (0, 1):
        monkeypatch.setattr(processes, "broadcast", exchange(index))
        compute = (lambda: np.arange(3.0)) if index == 0 else (lambda: pytest.fail("computed"))
        assert processes.on_process_zero(compute, np.zeros(3)).tolist() == [0, 1, 2]


def test_no_cluster_is_one_sentence():
    with pytest.raises(UserError, match="this process cannot join the others: .*; exp"):
        processes.join(MeshSection(distributed=True))


@pytest.mark.nightly
def test_the_watcher_reports_an_abort(root):
    said = {}
    for end in ("os.abort()", "processes.dismiss_watcher()"):
        code = (
            f"import os\nfrom iapo_jax.runtime import processes\nprocesses.start_watcher()\n{end}"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
        )
        said[done.returncode] = done.stderr
    assert said[0] == ""
    assert "was aborted: all processes of a run end when one of them ends" in said[-signal.SIGABRT]
