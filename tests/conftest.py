"""Strict modes for every test, set before JAX starts, and what most tests share."""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import jax
import numpy as np
import pytest

from iapo_jax.model import DecoderConfig, init_params, make_model

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
SHARED_DATA = ROOT.parent / "shared" / "data"


def pytest_configure(config):
    # Without x64 JAX computes a requested float64 in float32 and only warns: here it is an error.
    jax.config.update("jax_enable_x64", False)
    config.addinivalue_line("filterwarnings", "error:Explicitly requested dtype")


def random_params(config, seed=0, scale=0.3):
    """Parameters without a constant tensor: normal of this scale, norms about 1. No compilation."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    fill = lambda path, x: np.float32(  # noqa: E731
        ("scale" in str(path[-1])) + scale * rng.standard_normal(x.shape)
    )
    return jax.tree.map(jax.numpy.asarray, jax.tree_util.tree_map_with_path(fill, shapes))


@pytest.fixture(scope="session")
def root():
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets and tokenizers beside the repository, if this machine has it."""
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
