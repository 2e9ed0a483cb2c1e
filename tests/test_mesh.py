"""What devices exchange: nothing of the size of the vocabulary inside a loop."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from before_jax import MESHES

from iapo_jax.model import scoring
from iapo_jax.model.decoder import DecoderConfig, make_model, param_shapes
from iapo_jax.sharding import by_prompt, make_mesh, param_shardings
from iapo_jax.types import Prompts

V, D = 512, 16
COLLECTIVE = re.compile(r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all)\(")


def collectives_in_loops(compiled):
    """Shapes that are exchanged in the bodies of loops of the optimized program."""
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


@pytest.mark.parametrize("axes", MESHES[:2])
def test_no_table_crosses_devices_in_the_loop_of_the_head(axes, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_LOGITS", V)  # many chunks
    config = DecoderConfig(V, D, 32, 1, 2, 2, 8, tie_word_embeddings=True)
    mesh = make_mesh(*axes)
    model, split = make_model(config, mesh), by_prompt(mesh)
    shapes = param_shapes(config)
    places = param_shardings(mesh, shapes)
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)

    prompts, tokens = Prompts(ids(8, 4), ids(8)), ids(8, 2, 64)

    def loss(params, prompts, tokens):
        return scoring.score_completions(model, params, prompts, tokens, 1.0).log_prob.sum()

    program = jax.jit(jax.grad(loss), out_shardings=places)
    compiled = program.lower(params, prompts, tokens).compile()
    exchanged = collectives_in_loops(compiled)
    assert exchanged, "the loop of the head exchanges hidden states"
    assert all(np.prod(shape) < V * D for shape in exchanged), exchanged


@pytest.mark.parametrize("axes", MESHES)
def test_each_device_holds_its_share_of_every_weight(axes):
    """Heads and hidden units over tensor, the model's width over fsdp, the vocabulary over both.

    The figures do not depend on it, so only the shapes can tell.
    """
    heads, key_heads, width, hidden = 16, 8, 8, 32
    config = DecoderConfig(V, D, hidden, 1, heads, key_heads, width, qkv_bias=True)
    shapes, mesh = param_shapes(config), make_mesh(*axes)
    places = param_shardings(mesh, shapes)
    held = jax.tree.map(lambda x, place: place.shard_shape(x.shape), shapes, places)
    _, fsdp, tensor = axes
    assert held["embedding"] == held["head"] == (V // tensor // fsdp, D)
    layer = held["layers"]
    for name, count in (("query", heads), ("key", key_heads), ("value", key_heads)):
        assert layer[name]["kernel"] == (1, D // fsdp, count // tensor, width), name
        assert layer[name]["bias"] == (1, count // tensor, width), name
    assert layer["output"]["kernel"] == (1, heads // tensor, width, D // fsdp)
    for name in ("gate", "up"):
        assert layer[name]["kernel"] == (1, D // fsdp, hidden // tensor), name
    assert layer["down"]["kernel"] == (1, hidden // tensor, D // fsdp)
    assert layer["attention_norm"]["scale"] == (1, D)
