"""What must be set before JAX is imported: its devices, no network, its cache of programs.

The cache is shared by all tests and all checkouts, and kept between runs. A program's key holds its
text, the versions of JAX and jaxlib, the flags of XLA and the devices, so a program that changes is
compiled again. It does not hold the instructions of the processor for which XLA wrote machine code,
so they are part of the folder's name. The folder may be deleted at any time.
"""

import hashlib
import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import xla_flags

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "iapo_jax" / "tests"
# Two devices in the gate; .ci/nightly runs the same tests on eight.
DEVICES = int(os.environ.get("IAPO_TEST_DEVICES", 2))
# Axes data, fsdp, tensor of the meshes that tests run on.
MESHES = [(2, 1, 1), (1, 2, 1), (1, 1, 2)] if DEVICES < 8 else [(8, 1, 1), (2, 4, 1), (2, 2, 2)]
LIMIT = 2**31  # bytes of the cache, several times what the suite needs


def processor() -> str:
    """Eight hexadecimal digits for the instructions that this processor knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = sorted({line for line in lines if line.startswith(("model", "flags", "Features"))})
    except OSError:  # no Linux
        found = [platform.machine(), platform.processor(), platform.node()]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()[:8]


def empty_large_cache() -> None:
    """Deletes the cache if it is larger than `LIMIT`: nothing else ever leaves it."""
    place = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if place.is_dir() and sum(entry.stat().st_size for entry in os.scandir(place)) > LIMIT:
        shutil.rmtree(place)


# Otherwise every process that a test starts compiles the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["XLA_FLAGS"] = " ".join(
    [xla_flags.QUICK, xla_flags.devices(DEVICES), os.environ.get("XLA_FLAGS", "")]
)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Processes that tests start inherit these.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(CACHE / f"jaxlib-{version('jaxlib')}-{processor()}"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
