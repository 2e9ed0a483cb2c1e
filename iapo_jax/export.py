"""Exports a checkpoint as a Hugging Face model directory.

Run it as `python -m iapo_jax.export RUN_DIR [--step N] ...`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from iapo_jax.config.checks import check_writable
from iapo_jax.config.sections import MeshSection
from iapo_jax.errors import RunError, UserError
from iapo_jax.pretrained import model_directory
from iapo_jax.pretrained.loaded_model import start_mesh
from iapo_jax.runtime.cli import exit_code
from iapo_jax.sharding import fetch
from iapo_jax.training.model_sources import load_checkpoint


def export(
    run_dir: Path, out: Path | None = None, *, step: str = "auto", dtype: str = "float32"
) -> Path:
    """Writes a checkpoint of a run as a directory that transformers can open.

    Args:
      out: default `run_dir`/hf_STEP.
      step: a number, or auto: the step chosen on the selection split if the run had one, else the
        newest.

    Raises:
      UserError: if `run_dir` is not a run directory, or has no such checkpoint.
      RunError: if `out` cannot be written.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype is {dtype!r}; expected float32, bfloat16 or float16")
    if out is not None:
        check_writable(out.parent, "the directory of --out")
        model_directory.check_replaceable(out)
    # The parameters are split over the devices of this machine, whatever mesh the run had.
    mesh = start_mesh(MeshSection(data=1, fsdp=-1))
    loaded = load_checkpoint(run_dir, step, mesh=mesh)
    field = "RUN_DIR" if out is None else "the directory of --out"
    out = out or run_dir / f"hf_{loaded.step}"
    check_writable(out.parent, field)
    try:
        model_directory.save_pretrained(
            fetch(loaded.params),
            loaded.pretrained.hf_config,
            loaded.pretrained.tokenizer,
            out,
            generation_config=loaded.pretrained.generation_config,
            dtype=dtype,
        )
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error}") from None
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m iapo_jax.export", description=__doc__)
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="output_dir of a train or sft run"
    )
    parser.add_argument(
        "--step",
        default="auto",
        help="step of the checkpoint; default: the one that the run selected, or else the newest",
    )
    parser.add_argument("--out", type=Path, help="directory of the model; default: RUN_DIR/hf_STEP")
    parser.add_argument(
        "--dtype", default="float32", help="dtype of the weights: float32, bfloat16 or float16"
    )
    found = parser.parse_args(argv)

    def run() -> None:
        print(export(found.run_dir, found.out, step=found.step, dtype=found.dtype))

    return exit_code(run)


if __name__ == "__main__":
    raise SystemExit(main())
