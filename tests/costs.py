"""What each test file costs: CPU seconds, compiled programs; printed at the end of every run.

Unlike wall time these figures mean the same on a busy machine. CPU seconds are those of the
process and of the processes that it started and waited for.
"""

import os
from collections import Counter

import jax
import pytest

COMPILE = "/jax/core/compile/backend_compile_duration"
HIT = "/jax/compilation_cache/cache_hits"
SHOWN = 12


class Costs:
    """A plugin of pytest; with pytest-xdist one in each worker, and one that adds theirs up."""

    def __init__(self):
        self.files: dict[str, Counter] = {}
        self.now = Counter()
        self.deselected = Counter()  # tests by file
        jax.monitoring.register_event_duration_secs_listener(self._compiled)
        jax.monitoring.register_event_listener(self._hit)

    def _compiled(self, event, seconds, **_):
        if event == COMPILE:
            self.now += Counter(programs=1, compiling=seconds)

    def _hit(self, event, **_):
        if event == HIT:
            self.now += Counter(found=1)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        before = sum(os.times()[:4])
        result = yield
        self.now += Counter(items=1, seconds=sum(os.times()[:4]) - before)
        self.files.setdefault(item.path.stem, Counter()).update(self.now)
        self.now = Counter()
        return result

    def pytest_deselected(self, items):
        self.deselected.update(item.path.stem for item in items)

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["costs"] = {k: dict(v) for k, v in self.files.items()}
            session.config.workeroutput["deselected"] = dict(self.deselected)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        output = getattr(node, "workeroutput", {})
        for name, costs in output.get("costs", {}).items():
            self.files.setdefault(name, Counter()).update(costs)
        self.deselected |= Counter(output.get("deselected", {}))  # the same of every worker

    def pytest_terminal_summary(self, terminalreporter):
        if self.deselected:
            terminalreporter.section("deselected; `bash .ci/nightly` runs them")
            texts = (f"{name} {number}" for name, number in sorted(self.deselected.items()))
            terminalreporter.write_line(", ".join(texts))
        if not self.files:
            return
        terminalreporter.section("costs")
        ordered = sorted(self.files.items(), key=lambda pair: -pair[1]["seconds"])
        rows = [*ordered[:SHOWN], ("all files", sum(self.files.values(), Counter()))]
        for name, cost in rows:
            terminalreporter.write_line(
                f"{name:<22} {cost['items']:5} tests {cost['seconds']:7.1f} CPU s "
                f"{cost['programs']:5} programs, {cost['found']:5} of them from the cache, "
                f"compiled in {cost['compiling']:.1f} s"
            )
