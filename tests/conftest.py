"""Strict modes for every test, set before JAX starts, and what most tests share."""

import functools
import gc
import json
from pathlib import Path
from typing import NamedTuple

import before_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from before_jax import ROOT
from costs import Costs
from jax._src import compiler

from iapo_jax.model.decoder import DecoderConfig, make_model, param_shapes
from iapo_jax.pretrained import loaded_model
from iapo_jax.pretrained.architecture import decoder_config
from iapo_jax.pretrained.weights import load_params
from iapo_jax.types import Model

GOLDEN = ROOT / "tests" / "golden"
SHARED_DATA = ROOT.parent / "shared" / "data"


def keep_meshes_out_of_the_cache():
    """Programs of several devices are compiled anew in each process.

    XLA for CPU orders the collectives of a program that it has compiled, but not of one that it has
    loaded: two devices then wait in two different collectives for each other until XLA aborts.
    """
    resolve = compiler._resolve_compilation_strategy

    def resolved(computation, devices, *rest):
        key, options = resolve(computation, devices, *rest)
        return key if devices.size == 1 else None, options

    compiler._resolve_compilation_strategy = resolved


def pytest_configure(config):
    keep_meshes_out_of_the_cache()
    # Without x64 JAX computes a requested float64 in float32 and only warns: here it is an error.
    jax.config.update("jax_enable_x64", False)
    config.addinivalue_line("filterwarnings", "error:Explicitly requested dtype")
    # Less time: garbage is collected less often, and no program is told which lines of Python it
    # comes from.
    gc.set_threshold(200_000, 20, 100)
    jax.config.update("jax_traceback_in_locations_limit", 0)
    config.pluginmanager.register(Costs())
    if not hasattr(config, "workerinput"):
        before_jax.empty_large_cache()


# The longest first: otherwise one worker would wait for the file that the other began last.
LONG = ["test_train", "test_information", "test_faults", "test_inspect", "test_report"]
# Files whose runs have the same programs; a worker that runs them all traces these once.
TINY_RUNS = {"test_train", "test_faults", "test_step"}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tiny runs" if Path(file).stem in TINY_RUNS else file

    return Scheduling(config, log)


def random_params(config, seed=0, scale=0.3):
    """Parameters without a constant tensor: normal of this scale, norms about 1. No compilation."""
    rng = np.random.default_rng(seed)

    def fill(path, x):
        return np.float32(("scale" in str(path[-1])) + scale * rng.standard_normal(x.shape))

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(fill, param_shapes(config)))


class Golden(NamedTuple):
    """A tiny model made by transformers, as ours; its logits are in `logits.npz`."""

    config: DecoderConfig
    model: Model
    params: dict


@functools.cache
def golden_model(name):
    """One of tests/golden/models: qwen2, qwen3 or llama, tied or untied; 97 tokens, width 32."""
    directory = GOLDEN / "models" / name
    config = decoder_config(json.loads((directory / "config.json").read_text()))
    return Golden(config, make_model(config), load_params(directory, config))


@functools.partial(jax.jit, static_argnames="model")
def plain_logits(model, params, tokens):
    """Logits [B, S, V] of whole sequences [B, S]: one forward, no context, no chunks."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.forward(params, tokens, positions, ())
    return jnp.einsum("bsd,vd->bsv", hidden.astype(jnp.float32), model.logit_weight(params))


MAPPED = Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drop the programs of earlier modules when there are many: each is mapped memory, and a
    process may map 65,530 pieces (vm.max_map_count). XLA crashes without a word there."""
    yield
    if not MAPPED.exists() or len(MAPPED.read_bytes().splitlines()) > 40_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session", autouse=True)
def keep_the_cache():
    """A command that starts with the default config would replace the cache of the session, for
    all tests after it, by one of slow programs only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded_model, "use_compilation_cache", lambda directory: None)
        yield


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real datasets and tokenizers beside the repository, if this machine has it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_config():
    """A decoder of 2 layers and width 32 with the features of Qwen2: biases, GQA 4/2, tied head."""
    return DecoderConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        qkv_bias=True,
        rms_norm_eps=1e-3,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config):
    """The tiny decoder's pure functions (`types.Model`)."""
    return make_model(tiny_config)


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """Parameters of the tiny decoder, far from uniform: a wrong token or position shows."""
    return random_params(tiny_config)
