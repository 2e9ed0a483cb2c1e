"""Whether the attention kernel compiles for TPU chips that are not here; nothing is executed.

pip install libtpu            # of the version that jax[tpu] asks for
python benchmarks/tpu_kernels.py
"""

import argparse

from iapo_jax.model import attention_kernels
from iapo_jax.sharding import described_devices

TOPOLOGIES = ("v4:2x2x1", "v5e:2x4", "v5p:2x2x1", "v6e:2x4")
WIDTHS = (64, 80, 128, 256)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("topologies", nargs="*", default=TOPOLOGIES)
    print("chip            " + "".join(f"heads of {width:<6}" for width in WIDTHS))
    for topology in parser.parse_args().topologies:
        device = described_devices(topology)[0]
        found = [attention_kernels.works("tpu", width, device) for width in WIDTHS]
        told = "".join(f"{'compiles' if one else 'fails':<15}" for one in found)
        print(f"{device.device_kind:<16}{told}", flush=True)


if __name__ == "__main__":
    main()
