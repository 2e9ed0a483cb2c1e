"""Compile the paper's configs with their true shapes on eight virtual devices; no weights.

    python experiments/paper/dry_run.py --models DIR --tokenizer DIR --data DIR [NAME ...]

--models holds Qwen2.5-0.5B-Instruct.config.json and so on; nothing is read of the weights. --data
holds gsm8k, math500 and dapo as `NAME=PATH` of the catalogue reads them. Each config is compiled
for v5e-8 and for 8 GPUs (the two commands in its head), on CPU: what is printed is the memory a
device by XLA's CPU compiler. With `--chips`, and the package libtpu, v5e-8 is compiled by the
compiler of these chips instead, and 8 GPUs are left out.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

HERE = Path(__file__).resolve().parent
# Nothing is executed: what is compiled need not be fast. jaxlib 0.11.1 has the newer emitters only,
# and JAX ends the process for a flag that it does not know.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if Version(version("jaxlib")) < Version("0.11.1.dev0"):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"


def commands(path: Path) -> dict[str, list[str]]:
    """The overrides of the two commands in a config's head, by hardware."""
    head = path.read_text().splitlines()[1:3]
    found = {}
    for line, hardware in zip(head, ("v5e-8", "8 GPUs"), strict=True):
        words = shlex.split(line.partition(":")[2])
        found[hardware] = words[words.index("--config") + 2 :]
    return found


def local(path: Path, arguments: argparse.Namespace) -> list[str]:
    """Overrides that put local files in place of hub names."""
    text = path.read_text()
    model = re.search(r"path: \S+/(\S+)", text)[1]
    overrides = [
        "model.path=",
        f"model.config={arguments.models / f'{model}.config.json'}",
        f"model.tokenizer={arguments.tokenizer}",
    ]
    for section in ("data", "eval"):
        spec = re.search(rf'^{section}:\n  dataset: "([^"]+)"', text, re.M)[1]
        name, _, rest = spec.partition(":")
        source = {"gsm8k": "gsm8k", "math-500": "math500", "dapo-math-17k": "dapo"}[name]
        split = re.match(r"\w+", rest)[0]
        file = _file(arguments.data / source, split)
        overrides.append(f"{section}.dataset={name}={file}:{rest}")
    return overrides


def _file(directory: Path, split: str) -> Path:
    """The file of a split, or the only one there is."""
    files = sorted(p for p in directory.rglob("*") if p.suffix in (".parquet", ".jsonl", ".json"))
    named = [path for path in files if split in path.stem]
    if not (named or files):
        raise SystemExit(f"{directory} has no parquet or JSON file; expected the data set's")
    return (named or files)[0]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(path.stem for path in HERE.glob("*.yaml"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--chips", action="store_true", help="compile for TPU v5e, by libtpu")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(known))
    if unknown:
        parser.error(f"unknown config {unknown[0]!r}; expected one of {', '.join(known)}")
    failed = []
    for name in arguments.names or known:
        path = HERE / f"{name}.yaml"
        for hardware, overrides in commands(path).items():
            if arguments.chips and hardware != "v5e-8":
                continue
            how = ["--topology", "v5e:2x4"] if arguments.chips else ["--dry_run"]
            command = [sys.executable, "-m", "iapo_jax.train", "--config", str(path), *how]
            flags = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
            print(f"== {name}, {hardware}", flush=True)
            done = subprocess.run(
                [*command, *overrides, *local(path, arguments), f"output_dir=runs/dry/{name}"],
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
                check=False,
            )
            if done.returncode:
                failed.append(f"{name} ({hardware})")
    print(f"failed: {', '.join(failed)}" if failed else "all compiled")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
