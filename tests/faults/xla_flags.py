"""Flags with which XLA compiles small programs quickly; they run slower. No JAX here."""

from importlib.metadata import version

from packaging.version import Version

QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# Newer emitters make an MLIR context for each fusion, which takes longer than all the rest: with
# the older ones tests of the model take half the CPU time. jaxlib 0.11.1 no longer has them, and
# JAX ends the process for a flag that it does not know.
if Version(version("jaxlib")) < Version("0.11.1.dev0"):
    QUICK += " --xla_cpu_use_fusion_emitters=false"


def devices(number: int) -> str:
    """The flag that makes this many devices of the processor."""
    return f"--xla_force_host_platform_device_count={number}"
