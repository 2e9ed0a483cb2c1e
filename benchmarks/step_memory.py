"""Memory of scoring and of its gradient, compiled only, on a mesh of virtual CPU devices.

    python benchmarks/step_memory.py [--layers 2] [--devices 8] [--length 2048] [--unplaced]

Shapes of Qwen2.5-1.5B in bfloat16, rematerialized layers, one prompt of 512 tokens with 8
completions on each device. Nothing is computed. The CPU backend computes bfloat16 in float32: the
figures are upper bounds for an accelerator; what they show is that nothing is gathered. With
`--unplaced` the model says nothing of where activations lie, and XLA decides.
"""

import argparse
import os


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--unplaced", action="store_true", help="leave activations to XLA")
    arguments = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={arguments.devices}"

    import jax  # reads XLA_FLAGS when it starts
    import jax.numpy as jnp

    from iapo_jax import Prompts, make_mesh, score_completions
    from iapo_jax.model import DecoderConfig, init_params, make_model
    from iapo_jax.sharding import by_prompt, param_shardings

    config = DecoderConfig(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_layers=arguments.layers,
        num_heads=12,
        num_kv_heads=2,
        head_dim=128,
        tie_word_embeddings=True,
        qkv_bias=True,
        dtype="bfloat16",
        remat=True,
    )
    mesh = make_mesh(1, arguments.devices, 1)
    model = make_model(config, None if arguments.unplaced else mesh)
    split = by_prompt(mesh)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    places = param_shardings(mesh, shapes)

    def struct(x, place):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

    params = jax.tree.map(struct, shapes, places)

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=split)

    prompts = Prompts(ids(arguments.devices, 512), ids(arguments.devices))
    tokens = ids(arguments.devices, 8, arguments.length)

    def score(params, prompts, tokens):
        return score_completions(model, params, prompts, tokens, 1.0)

    def gradient(params, prompts, tokens):
        return jax.grad(lambda p: score(p, prompts, tokens).log_prob.sum())(params)

    for name, program in (
        ("score", jax.jit(score)),
        ("gradient", jax.jit(gradient, out_shardings=places)),
    ):
        memory = program.lower(params, prompts, tokens).compile().memory_analysis()
        print(f"{name:<9} {memory.temp_size_in_bytes / 2**20:8.0f} MiB temporary a device")


if __name__ == "__main__":
    main()
