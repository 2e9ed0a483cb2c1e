"""Two processes of two devices each, as a user starts them; no JAX here."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import xla_flags

ROOT = Path(__file__).resolve().parents[2]
HEARTBEAT = 10  # seconds


def free_port() -> int:
    """A port on which nobody listens yet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_pair(arguments: Sequence[str], log: Path) -> list[subprocess.Popen]:
    """Starts `iapo_jax.train` twice as one run; what they say goes to LOG.0 and LOG.1."""
    mesh = ["mesh.distributed=true", f"mesh.coordinator=127.0.0.1:{free_port()}"]
    mesh += ["mesh.num_processes=2", f"mesh.heartbeat_timeout={HEARTBEAT}"]
    flags = f"{xla_flags.QUICK} --xla_force_host_platform_device_count=2"
    pair = []
    for number in range(2):
        with log.with_suffix(f".{number}").open("a") as file:
            pair.append(
                subprocess.Popen(
                    [sys.executable, "-m", "iapo_jax.train", *arguments, *mesh]
                    + [f"mesh.process_id={number}"],
                    cwd=ROOT,
                    env={**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "0"},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return pair


def ended(pair: Sequence[subprocess.Popen], seconds: float = 240) -> list[int]:
    """Exit codes; the processes are gone afterwards in any case."""
    try:
        return [process.wait(seconds) for process in pair]
    finally:
        for process in pair:
            process.kill()
