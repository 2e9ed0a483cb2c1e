"""Fuzzes the extraction and the checker for hours: `python tests/faults/fuzz.py [--minutes N]`.

Without --atheris: random texts of fragments, with the children that ask math-verify. With it
(`pip install -e ".[faults]"`): texts led by the coverage of extraction, notation, quantities,
structures and equivalence. A failing input goes to a file, and the exit code is 1.

    python tests/faults/fuzz.py --minutes 60
    python tests/faults/fuzz.py --minutes 60 --atheris
    python tests/faults/fuzz.py --replay build/fuzz/failure-N.json
"""

import argparse
import hashlib
import json
import random
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
_TIMEOUT = 2.0  # s of a job of math-verify
_GROWTH = 300  # MiB that this process may grow by, caches included
_RUN = 4_000  # repeats of one fragment, at most


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0)
    add("--seed", type=int, default=0)
    add("--atheris", action="store_true", help="led by coverage")
    add(
        "--out", type=Path, default=Path("build/fuzz"), help="of failing inputs; default build/fuzz"
    )
    add("--replay", type=Path, metavar="FILE", help="check one failing input again")
    return parser.parse_args(argv)


def check(one: str, other: str) -> None:
    """All properties of a completion, and of two answers."""
    import hostile

    hostile.timed(hostile.check_completion, one)
    hostile.timed(hostile.check_pair, one[:2_100], other[:2_100])


def keep(out: Path, one: str, other: str) -> Path:
    """Writes what failed; lone surrogates too, as JSON in ASCII."""
    text = json.dumps([one, other])
    path = out / f"failure-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"FAILED: the input is in {path}", flush=True)
    return path


class Texts:
    """Texts of fragments: choices of a random generator, or of a fuzzer's bytes."""

    def __init__(self, below):
        self.below = below  # n -> a number from 0 to n - 1

    def text(self) -> str:
        import hostile

        parts = []
        for _ in range(1 + self.below(24)):
            fragment = hostile.FRAGMENTS[self.below(len(hostile.FRAGMENTS))]
            again = self.below(16)
            parts.append(fragment * (self.below(_RUN) if again == 15 else 1 + again // 12))
        return "".join(parts)


def fuzz_random(arguments) -> int:
    """Properties of random texts; those of pairs also by math-verify, in children."""
    import hostile

    from iapo_jax.answers import AnswerChecker

    rng = random.Random(arguments.seed)
    texts = Texts(rng.randrange)
    until, told, done = time.monotonic() + 60 * arguments.minutes, 0.0, 0
    start = None
    with AnswerChecker(1, timeout=_TIMEOUT, memory=2**30) as checker:
        while time.monotonic() < until:
            one, other = texts.text(), texts.text()
            try:
                check(one, other)
                short, began = one[: rng.randrange(1, 200)], time.monotonic()
                pairs = [(short, hostile.FRESH), (short, other[:100])]
                verdicts = checker.check(pairs)
                assert time.monotonic() - began < 4 * _TIMEOUT + 30, "longer than the time-outs"
                assert not (verdicts[0] and hostile.free_of(short)), "right by algebra"
                grown = hostile.resident() - (start or hostile.resident())
                assert grown < _GROWTH, f"the process has grown by {grown:.0f} MiB"
            except BaseException:
                keep(arguments.out, one, other)
                traceback.print_exc()
                return 1
            done += 1
            start = start or (hostile.resident() if done == 2_000 else None)
            if time.monotonic() > told + 60:
                told = time.monotonic()
                counts = f"{checker.timeouts} time-outs, {checker.errors} errors of the children"
                print(f"{done:,} inputs, {hostile.resident():.0f} MiB, {counts}", flush=True)
    print(f"done: {done:,} inputs, no failure", flush=True)
    return 0


def fuzz_coverage(arguments) -> int:
    """The same properties, on texts that reach new code."""
    import atheris

    with atheris.instrument_imports(
        include=[
            f"iapo_jax.{name}"
            for name in ("extraction", "notation", "quantities", "structures", "equivalence")
        ]
    ):
        import hostile  # noqa: F401  imports them

    done = 0

    def run(data: bytes) -> None:
        nonlocal done
        done += 1
        provider = atheris.FuzzedDataProvider(data)
        if provider.ConsumeBool():  # free text, lone surrogates included
            one, other = (provider.ConsumeUnicode(provider.ConsumeIntInRange(0, 400)) for _ in "ab")
        else:
            texts = Texts(lambda n: provider.ConsumeIntInRange(0, n - 1))
            one, other = texts.text(), texts.text()
        try:
            check(one, other)
        except BaseException:
            keep(arguments.out, one, other)
            raise

    seconds = max(1, int(60 * arguments.minutes))
    options = [f"-max_total_time={seconds}", f"-seed={arguments.seed + 1}", "-max_len=2000"]
    options += [
        "-len_control=0",
        "-timeout=120",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={arguments.out}/",
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()  # ends the process; libFuzzer says how many inputs there were
    return 0


def main(argv=None) -> int:
    arguments = parse(argv)
    if arguments.replay:
        check(*json.loads(arguments.replay.read_text()))
        print("the input passes")
        return 0
    return fuzz_coverage(arguments) if arguments.atheris else fuzz_random(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
