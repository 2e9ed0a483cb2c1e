"""Counts the tests of JUnit files; fails for failed ones, and for skips that are not listed.

python .ci/summary.py REASONS RESULTS.xml ...
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree


def main(reasons: Path, results: list[Path]) -> int:
    """0 if every test passed or was skipped for a reason that is listed."""
    lines = reasons.read_text().splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    bad = 0
    for path in results:
        counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
        for case in ElementTree.parse(path).iter("testcase"):
            name = f"{case.get('classname')}::{case.get('name')}"
            outcomes = {child.tag: child for child in case}
            if outcomes.keys() & {"failure", "error"}:
                counts["failed"] += 1
                print(f"FAILED   {name}")
            elif "skipped" in outcomes:
                counts["skipped"] += 1
                reason = outcomes["skipped"].get("message", "")
                if not any(re.search(one, reason) for one in listed):
                    bad += 1
                    print(f"SKIPPED  {name}: {reason}")
            else:
                counts["passed"] += 1
        bad += counts["failed"]
        print(f"{path.stem:<8} " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]))
