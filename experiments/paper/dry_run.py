"""Compile the cells of the paper's table with their real shapes for eight virtual devices.

    python experiments/paper/dry_run.py --models DIR --tokenizer DIR --data DIR [NAME ...]

--models contains Qwen2.5-0.5B-Instruct.config.json and so on; no weights are read. --data contains
the folders gsm8k, math500 and dapo, as `NAME=PATH` of the catalogue reads them. NAME is a cell of
`cells.py`; the default is all. Each is compiled on CPU, for v5e-8 and for 8 GPUs; the printed
memory is that of one device, by XLA's CPU compiler. With `--chips` and the package libtpu, the
compiler of TPU v5e compiles the v5e-8 commands instead.
"""

import argparse
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from cells import CELLS, HARDWARE, MODELS, config_of, overrides
from packaging.version import Version

from iapo_jax.config.loading import load_config
from iapo_jax.config.train import TrainConfig

# Nothing is executed, so the compiled code need not be fast. jaxlib 0.11.1 has only the newer
# emitters, and JAX ends the process for an unknown flag.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if Version(version("jaxlib")) < Version("0.11.1.dev0"):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"


def local(cell: str, arguments: argparse.Namespace) -> list[str]:
    """Overrides that replace hub names with local files."""
    config = load_config(TrainConfig, str(config_of(cell)))
    model = MODELS[CELLS[cell][0]].hub.partition("/")[2]
    found = [
        "model.path=",
        f"model.config={arguments.models / f'{model}.config.json'}",
        f"model.tokenizer={arguments.tokenizer}",
    ]
    for section in ("data", "eval"):
        name, _, rest = getattr(config, section).dataset.partition(":")
        file = _file(arguments.data / CELLS[cell][1], split=rest.partition(":")[0])
        found.append(f"{section}.dataset={name}={file}:{rest}")
    return found


def _file(directory: Path, split: str) -> Path:
    """The file whose name contains the split, otherwise the first file."""
    files = sorted(p for p in directory.rglob("*") if p.suffix in (".parquet", ".jsonl", ".json"))
    named = [path for path in files if split in path.stem]
    if not (named or files):
        raise SystemExit(f"{directory} has no parquet or JSON file; expected a file of the dataset")
    return (named or files)[0]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CELLS))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chips", action="store_true", help="compile for TPU v5e with libtpu")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(CELLS))
    if unknown:
        parser.error(f"unknown cell {unknown[0]!r}; expected one of {', '.join(CELLS)}")
    failed = []
    for name in arguments.names or CELLS:
        for hardware in HARDWARE[:1] if arguments.chips else HARDWARE:
            how = ["--topology", "v5e:2x4"] if arguments.chips else ["--dry_run"]
            command = [
                sys.executable,
                "-m",
                "iapo_jax.train",
                "--config",
                str(config_of(name)),
                *how,
            ]
            flags = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
            print(f"== {name}, {hardware}", flush=True)
            done = subprocess.run(
                [
                    *command,
                    *overrides(name, hardware),
                    *local(name, arguments),
                    f"output_dir=runs/dry/{name}",
                ],
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                check=False,
            )
            if done.returncode:
                failed.append(f"{name} ({hardware})")
    print(f"failed: {', '.join(failed)}" if failed else "all compiled")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
