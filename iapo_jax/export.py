"""A checkpoint as a Hugging Face directory: `python -m iapo_jax.export RUN_DIR [--step N] ...`."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from iapo_jax import pretrained, run, update
from iapo_jax.checkpoint import Checkpoints, step_to_resume
from iapo_jax.checks import check_writable
from iapo_jax.config import MeshSection, load_run_config
from iapo_jax.errors import UserError
from iapo_jax.sharding import fetch, replicated


def export(
    run_dir: Path, out: Path | None = None, *, step: str = "auto", dtype: str = "float32"
) -> Path:
    """Writes the parameters of a run's checkpoint as a directory that transformers opens as it is.

    Args:
      out: default `run_dir`/hf_STEP.
      step: a number, or auto for the newest.

    Raises:
      UserError: if `run_dir` is no run directory, or has no such checkpoint.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir} is no run directory: it has no config.yaml")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype is {dtype!r}; expected float32, bfloat16 or float16")
    config = load_run_config(path)
    # Any machine may export: the parameters are spread over whatever devices it has.
    opened = run.open_run(dataclasses.replace(config, mesh=MeshSection(data=1, fsdp=-1)))
    checkpoints = Checkpoints(run_dir, config.log.save_total_limit)
    number = step_to_resume(checkpoints, step, option="--step")
    if number is None:
        raise UserError(f"{checkpoints.directory} holds no checkpoint")
    optimizer = update.make_optimizer(config.optimizer, 1)
    memory = checkpoints.saved_memory(number, replicated(opened.mesh))
    like = update.abstract_state(opened.mesh, optimizer, run.abstract_params(opened), memory)
    out = out or run_dir / f"hf_{number}"
    check_writable(out.parent, "the directory of --out")
    state = checkpoints.restore(number, like)
    checkpoints.close()
    try:
        pretrained.save_pretrained(
            fetch(state.params),
            opened.pretrained.hf_config,
            opened.pretrained.tokenizer,
            out,
            generation_config=opened.pretrained.generation_config,
            dtype=dtype,
        )
    except OSError as error:
        raise UserError(f"--out {str(out)!r} cannot be written: {error}") from None
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m iapo_jax.export", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="output_dir of a train or sft run")
    parser.add_argument("--step", default="auto", help="checkpoint; default: the newest")
    parser.add_argument("--out", type=Path, help="default: RUN_DIR/hf_STEP")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    arguments = parser.parse_args(argv)
    try:
        print(export(arguments.run_dir, arguments.out, step=arguments.step, dtype=arguments.dtype))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
