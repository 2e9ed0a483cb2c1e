"""What devices exchange: nothing of the size of the vocabulary inside a loop; two processes."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax import scoring
from iapo_jax.model import DecoderConfig, init_params, make_model
from iapo_jax.sharding import by_prompt, make_mesh, param_shardings
from iapo_jax.types import Prompts

V, D = 512, 16
COLLECTIVE = re.compile(r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all)\(")


def collectives_in_loops(compiled):
    """Shapes that are exchanged in the bodies of loops of the optimised program."""
    text = compiled.as_text()
    bodies, found, inside = set(re.findall(r"body=%([\w.-]+)", text)), [], False
    for line in text.splitlines():
        if not line.startswith(" "):  # the head of a computation, or its closing brace
            name = re.match(r"%([\w.-]+)", line)
            inside = bool(name) and name[1] in bodies
        match = COLLECTIVE.search(line) if inside else None
        if match:
            found += re.findall(r"\w+\[([\d,]+)\]", match[1])
    return [tuple(map(int, shape.split(","))) for shape in found]


@pytest.mark.parametrize("axes", [(8, 1, 1), (1, 8, 1), (2, 4, 1)])
def test_no_table_crosses_devices_in_the_loop_of_the_head(axes, monkeypatch):
    monkeypatch.setattr(scoring, "_LOGITS", V)  # many chunks
    config = DecoderConfig(V, D, 32, 1, 2, 2, 8, tie_word_embeddings=True)
    mesh = make_mesh(*axes)
    model, split = make_model(config, mesh), by_prompt(mesh)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    places = param_shardings(mesh, shapes)
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
    ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)  # noqa: E731
    prompts, tokens = Prompts(ids(8, 4), ids(8)), ids(8, 2, 64)

    def loss(params, prompts, tokens):
        return scoring.score_completions(model, params, prompts, tokens, 1.0).log_prob.sum()

    program = jax.jit(jax.grad(loss), out_shardings=places)
    compiled = program.lower(params, prompts, tokens).compile()
    exchanged = collectives_in_loops(compiled)
    assert exchanged, "the loop of the head exchanges hidden states"
    assert all(np.prod(shape) < V * D for shape in exchanged), exchanged


PROCESS = """
import sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_num_cpu_devices", 1)
start, port, number = jax.distributed.initialize, sys.argv[1], int(sys.argv[2])
jax.distributed.initialize = lambda: start(f"127.0.0.1:{port}", 2, number)
from iapo_jax import run, train
raise SystemExit(run.leave(train.main(sys.argv[3:])))
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_two_processes_are_one_run(root, tmp_path):
    """Same metrics as one process with two devices; files are written once."""
    small = ["--config", "experiments/quickstart.yaml", "max_steps=2", "log.compilation_cache="]
    small += ["batch.prompts_per_step=2", "batch.num_generations=2", "eval.max_rows=4"]
    small += ["sampling.max_completion_length=24", "eval.prompts_per_batch=4"]
    small += ["algorithm.adapt=price_for_length", "algorithm.options.target_length=16"]
    two, one = tmp_path / "two", tmp_path / "one"
    port = free_port()
    environment = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", PROCESS, port]
    options = {"cwd": root, "env": environment, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(
            [*command, str(number), *small, "mesh.distributed=true", f"output_dir={two}"],
            stderr=subprocess.STDOUT,
            **options,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "held-out problems" in outputs[0] and "held-out problems" not in outputs[1]
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    alone = [sys.executable, "-m", "iapo_jax.train", *small, f"output_dir={one}"]
    subprocess.run(alone, stderr=subprocess.DEVNULL, check=True, timeout=240, **options)
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (two, one)
    ]
    assert len(rows[0]) == len(rows[1]) == 2
    for ours, theirs in zip(*rows, strict=True):
        for name in set(ours) - {"compiles"}:
            if not name.startswith(("time/", "perf/")):
                np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)
