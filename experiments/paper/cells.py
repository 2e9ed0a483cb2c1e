"""The cells of the paper's table: three models on three datasets, on two kinds of hardware.

    python experiments/paper/cells.py [MODEL_DATA ...]        # print the training commands

Each dataset has a config beside this file, for Qwen2.5-1.5B on v5e-8; other models and GPUs need
overrides. The hyper-parameters are the paper's (arXiv:2602.19049); README.md lists the differences.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
DATA_SETS = ("gsm8k", "math500", "dapo")
HARDWARE = V5E, GPUS = ("v5e-8", "8 GPUs")


class Model(NamedTuple):
    """A model, and how it is spread over eight devices."""

    hub: str
    v5e: dict[str, int]  # eight TPU chips of 16 GB
    gpus: dict[str, int]  # eight GPUs of 80 GB


def _spread(data: int, fsdp: int, tensor: int, micro_batch: int) -> dict[str, int]:
    return {
        "mesh.data": data,
        "mesh.fsdp": fsdp,
        "mesh.tensor": tensor,
        "batch.micro_batch_size": micro_batch,
    }


MODELS = {
    "qwen2.5-0.5b": Model(
        "Qwen/Qwen2.5-0.5B-Instruct", v5e=_spread(1, 8, 1, 8), gpus=_spread(8, 1, 1, 16)
    ),
    "qwen2.5-1.5b": Model(
        "Qwen/Qwen2.5-1.5B-Instruct", v5e=_spread(1, 8, 1, 8), gpus=_spread(1, 8, 1, 16)
    ),
    "qwen2.5-7b": Model(  # too large for eight v5e chips; this mesh comes closest
        "Qwen/Qwen2.5-7B-Instruct", v5e=_spread(1, 2, 4, 2), gpus=_spread(1, 8, 1, 8)
    ),
}
CELLS = {f"{model}_{data}": (model, data) for model in MODELS for data in DATA_SETS}


def config_of(cell: str) -> Path:
    """The config of a cell's dataset."""
    return HERE / f"{CELLS[cell][1]}.yaml"


def overrides(cell: str, hardware: str) -> list[str]:
    """The overrides that follow the config in a cell's command."""
    model = MODELS[CELLS[cell][0]]
    spread = model.v5e if hardware == V5E else model.gpus
    return [
        f"model.path={model.hub}",
        f"output_dir=runs/paper/{cell}",
        *(f"{name}={value}" for name, value in spread.items()),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", metavar="MODEL_DATA", help=", ".join(CELLS))
    cells = parser.parse_args().cells
    unknown = sorted(set(cells) - set(CELLS))
    if unknown:
        parser.error(f"unknown cell {unknown[0]!r}; expected one of {', '.join(CELLS)}")
    for cell in cells or CELLS:
        for hardware in HARDWARE:
            config = f"experiments/paper/{config_of(cell).name}"
            print(f"# {cell}, {hardware}")
            words = " ".join(overrides(cell, hardware))
            print(f"python -m iapo_jax.train --config {config} {words}")


if __name__ == "__main__":
    main()
