"""The backends' attention kernels, interpreted, against one softmax; and their lowering."""

import contextlib
import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from before_jax import MESHES

from iapo_jax.model import attention, attention_kernels
from iapo_jax.model.attention import Segment, attend, dense_attention, kernel_attention
from iapo_jax.sharding import make_mesh

KERNELS = {"gpu": attention_kernels.gpu_attention, "tpu": attention_kernels.tpu_attention}
ROWS = {"gpu": attention_kernels.GPU_KEYS, "tpu": attention_kernels.TPU_KEYS}

dense = jax.jit(dense_attention)


@functools.cache
def interpreted(platform):
    return jax.jit(functools.partial(KERNELS[platform], interpret=True))


def case(seed, queries, keys, heads, rest, width, dtype=jnp.float32, batch=2):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    visible = rng.integers(0, keys + 1, (batch, queries))
    visible[0, :2] = 0, keys  # nothing, and all
    return (
        normal(batch, queries, heads, rest, width),
        normal(batch, keys, heads, width),
        normal(batch, keys, heads, width),
        jnp.asarray(visible, jnp.int32),
    )


def assert_same(found, want, visible, atol):
    seen = np.asarray(visible) > 0
    assert np.isfinite(np.asarray(found[0])).all()
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(np.asarray(a)[seen], np.asarray(b)[seen], atol=atol)
    assert (np.asarray(found[1])[~seen] < -1e29).all()  # it vanishes in a join


# queries, keys, key heads, query heads of each, width: below and above a tile, folded probes, odd
CASES = [(5, 9, 1, 1, 64), (3, 300, 2, 84, 64), (70, 130, 2, 6, 128), (33, 257, 1, 4, 40)]


@pytest.mark.parametrize("platform", KERNELS)
@pytest.mark.parametrize("shape", CASES, ids=str)
def test_a_kernel_is_one_softmax(platform, shape):
    arguments = case(0, *shape)
    assert_same(interpreted(platform)(*arguments), dense(*arguments), arguments[3], 1e-5)


@pytest.mark.parametrize("platform", KERNELS)
def test_in_bfloat16_scores_and_sums_stay_float32(platform):
    arguments = case(1, 20, 200, 2, 3, 64, jnp.bfloat16)
    out, lse = interpreted(platform)(*arguments)
    assert out.dtype == lse.dtype == jnp.float32
    assert_same((out, lse), dense(*arguments), arguments[3], 2e-2)
    seen = np.asarray(arguments[3]) > 0
    np.testing.assert_allclose(lse[seen], dense(*arguments)[1][seen], atol=1e-3)


@pytest.mark.parametrize("platform", KERNELS)
def test_keys_behind_the_cuts_are_not_read(platform):
    """NaN in every tile behind the largest cut: multiplied even by 0 it would show."""
    q, k, v, visible = case(2, 10, 2 * ROWS[platform] + 5, 1, 2, 64)
    visible = jnp.minimum(visible, 30)
    behind = jnp.arange(k.shape[1]) >= ROWS[platform]
    bad = [jnp.where(behind[None, :, None, None], jnp.nan, x) for x in (k, v)]
    found = interpreted(platform)(q, *bad, visible)
    assert_same(found, dense(q, k, v, visible), visible, 1e-5)


def on_abstract_gpu():
    """Since 0.11 JAX lowers Triton kernels for a device that it knows, if only by its name."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    names = list(inspect.signature(jax.sharding.AbstractDevice).parameters)
    known = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": 132, "platform": "gpu"}
    device = jax.sharding.AbstractDevice(**{name: known[name] for name in names})
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize("platform, target", [("gpu", "cuda"), ("tpu", "tpu")])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("width", [64, 128])
def test_it_lowers_for_its_platform_without_one(platform, target, dtype, width):
    arguments = case(3, 40, 300, 2, 12, width, dtype)
    call = {"gpu": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform]
    allowed = [jax.export.DisabledSafetyCheck.custom_call(call)]
    export = jax.export.export(
        jax.jit(KERNELS[platform]), platforms=[target], disabled_checks=allowed
    )
    with on_abstract_gpu() if platform == "gpu" else contextlib.nullcontext():
        exported = export(*arguments)
    assert exported.platforms == (target,)
    assert call in exported.mlir_module()


def test_a_kernel_that_is_not_at_home_does_not_work():
    assert not any(attention_kernels.works(platform, 64) for platform in ("gpu", "tpu", "cpu"))


def test_of_a_described_device_the_kernel_need_only_compile(monkeypatch):
    """A CPU stands for it: the kernel of TPU does not compile there, a plain function does."""
    here = jax.devices()[0]
    with pytest.warns(
        UserWarning, match="falling back to XLA attention: the tpu attention kernel fails"
    ):
        assert not attention_kernels.works("tpu", 64, here)
    attention_kernels.works.cache_clear()
    monkeypatch.setattr(attention_kernels, "tpu_attention", attention.blockwise_attention)
    assert attention_kernels.works("tpu", 64, here) and not attention_kernels.works("tpu", 64)
    attention_kernels.works.cache_clear()


@pytest.fixture
def pretend_gpu(monkeypatch):
    """Makes JAX report a GPU, whose kernel is a test's variant of dense attention."""
    monkeypatch.setattr(attention_kernels.jax, "default_backend", lambda: "gpu")
    attention_kernels.works.cache_clear()
    yield lambda kernel: monkeypatch.setattr(attention_kernels, "gpu_attention", kernel)
    attention_kernels.works.cache_clear()


def test_a_kernel_that_fails_is_said_and_left(pretend_gpu):
    """As on hardware where it does not compile: a warning of one sentence, then XLA's loops."""
    with pytest.warns(
        UserWarning, match="the gpu attention kernel fails for head_dim 64: .*[Ii]nterpret"
    ):
        assert attention.choose_form("auto", None, 64) is attention.blockwise_attention


def spoiled(how):
    """Dense attention with one thing wrong."""

    def kernel(q, k, v, visible):
        out, lse = dense_attention(q, k, v, visible)
        nothing = (visible == 0)[..., None, None]
        if how == "by a little":
            out = out.at[0, 3, 0, 0, 0].add(3e-4) if q.dtype == jnp.float32 else out
        if how == "in its sum":
            lse = lse.at[0, 3, 0, 0].add(3e-4) if q.dtype == jnp.float32 else lse
        if how == "without keys":
            out = jnp.where(nothing[..., None], jnp.nan, out)
        if how == "counting nothing":
            lse = jnp.where(nothing, 0.0, lse)
        if how == "for wide heads" and q.shape[-1] > 64:
            raise NotImplementedError("too wide")
        return out, lse

    return kernel


@pytest.mark.parametrize(
    "how", ["by a little", "in its sum", "without keys", "counting nothing", "for wide heads"]
)
def test_a_kernel_that_is_wrong_is_said_and_left(pretend_gpu, how):
    pretend_gpu(spoiled(how))
    with pytest.warns(UserWarning, match="falling back to XLA attention.* for head_dim 128"):
        assert attention.choose_form("auto", None, 128) is attention.blockwise_attention


def test_a_kernel_that_works_is_chosen_unless_told_otherwise(pretend_gpu):
    right = spoiled("not at all")
    pretend_gpu(right)
    chosen = attention.choose_form("auto", None, 128)
    assert chosen.func is kernel_attention and chosen.args == (right, None)
    assert attention.choose_form("xla", None, 128) is attention.blockwise_attention


@pytest.mark.parametrize("platform", KERNELS)
def test_a_program_that_attends_tries_the_kernel_and_runs_it(platform, monkeypatch):
    """From inside jit, scan and grad, where the model asks: no warning, and the real kernel."""
    ran = []

    def kernel(q, k, v, visible):
        ran.append(q.shape)
        return functools.partial(KERNELS[platform], interpret=True)(q, k, v, visible)

    q, k, v, visible = case(6, 9, 130, 2, 2, 64)
    visible = jnp.maximum(visible, 1)
    folded, q = q.shape, q.reshape(2, 9, 4, 64)

    def total(q, k, v):
        def step(_, x):
            return (None, attend(x, [Segment(k, v, visible)]))

        return (jax.lax.scan(step, None, q[None])[1] ** 2).sum()

    def program():
        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(q, k, v)

    want = program()
    monkeypatch.setattr(attention_kernels.jax, "default_backend", lambda: platform)
    monkeypatch.setattr(attention_kernels, f"{platform}_attention", kernel)
    monkeypatch.setattr(attention, "DENSE_SCORES", 0)
    attention_kernels.works.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = program()
    attention_kernels.works.cache_clear()
    assert folded in ran
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("platform", KERNELS)
@pytest.mark.parametrize("dtype", attention_kernels.TOLERANCES)
def test_the_kernels_pass_their_own_trial(platform, dtype):
    error = attention_kernels.largest_error(interpreted(platform), 128, dtype)
    assert error <= attention_kernels.TOLERANCES[dtype] / 3


@pytest.mark.parametrize("axes, batch", [*((axes, 4) for axes in MESHES), (MESHES[0], 3)])
def test_on_a_mesh_each_device_computes_its_part(axes, batch):
    """Rows over data and fsdp, heads over tensor; where they do not divide, XLA's loops run."""
    mesh = make_mesh(*axes)
    kernel = functools.partial(attention_kernels.gpu_attention, interpret=True)
    arguments = case(4, 9, 70, 2, 2, 16, batch=batch)
    found = jax.jit(functools.partial(kernel_attention, kernel, mesh))(*arguments)
    assert_same(found, dense(*arguments), arguments[3], 1e-5)


def test_gradients_pass_through_a_kernel():
    q, k, v, visible = case(5, 12, 90, 2, 2, 16)
    visible = jnp.maximum(visible, 1)
    kernel = functools.partial(attention_kernels.gpu_attention, interpret=True)

    def total(form, q, k, v):
        out, lse = form(q, k, v, visible)
        return (out**2).sum() + lse.sum()

    def gradient(form):
        return jax.jit(jax.grad(functools.partial(total, form), argnums=(0, 1, 2)))(q, k, v)

    own = functools.partial(kernel_attention, kernel, None)
    for a, b in zip(gradient(own), gradient(dense_attention), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
