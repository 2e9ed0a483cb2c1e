r"""Whether completions are correct, on the host, with a pool of processes. No JAX.

`extraction` finds the answer, `equivalence` decides whatever it can decide exactly, and math-verify
compares the rest in child processes that are killed if they hang (evaluating
`\boxed{2^{2^{2^{2^{2^{2}}}}}}` never terminates). `docs/answers.md` states the policy. The only
module that imports math-verify.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Pipe
from typing import Self

from iapo_jax.answers.equivalence import KINDS, algebra, decide
from iapo_jax.answers.extraction import extract_answer

POLICY = 1
"""The version of the policy in `docs/answers.md`; it increases whenever a verdict changes."""

_START_SECONDS = 60.0  # a cold network disk needs many; not part of a job's timeout


def same_answer(one: str, other: str) -> bool:
    r"""Whether `equivalence` can prove that two answers are equal. Starts no child process.

    1,000 equals 1000.0, and 0.5 equals \frac{1}{2}; only `answers_match` finds x+1 equal to 1+x.
    """
    return decide(one, other) is True


def _serve(descriptor: int, memory: int) -> None:
    """Answers `[candidate, gold, timeout in s]` with `{"equal": bool}` or `{"error": str}`.

    Runs in the child, from source text, until EOF: it must not use any name of this module.
    """
    import contextlib
    import json
    import resource
    import signal
    from multiprocessing.connection import Connection

    connection = Connection(descriptor)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default kills, even inside C code
    with contextlib.suppress(ValueError, OSError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        from latex2sympy2_extended import NormalizationConfig  # comes with math-verify
        from math_verify import LatexExtractionConfig, parse, verify
    except Exception as error:
        return connection.send_bytes(json.dumps({"failed": repr(error)}).encode())

    # LaTeX only: the other extractors look for any number in the text, and evaluate it as Python.
    # Units are removed beforehand: math-verify would mistake the c of 4c for one.
    normal = NormalizationConfig(
        basic_latex=True,
        units=False,
        malformed_operators=True,
        nits=True,
        boxed="all",
        equations=False,
    )
    config = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=normal)]

    def parsed(text):
        return parse(
            f"\\boxed{{{text}}}",
            config,
            extraction_mode="first_match",
            parsing_timeout=None,  # math-verify's own cannot interrupt C code
            raise_on_error=True,
        )

    with contextlib.suppress(Exception):
        parsed("x^{2}")  # builds the parser's tables outside the first job's timeout
    connection.send_bytes(b'{"ready": true}')
    with contextlib.suppress(EOFError, OSError):
        while True:
            candidate, gold, timeout = json.loads(connection.recv_bytes())
            signal.alarm(int(timeout) + 10)  # in case the parent dies during a hang
            try:
                equal = verify(
                    parsed(gold),
                    parsed(candidate),
                    float_rounding=12,
                    numeric_precision=30,
                    allow_set_relation_comp=True,  # x > 2 is the interval (2, infinity)
                    timeout_seconds=None,
                    raise_on_error=True,
                )
                reply = {"equal": bool(equal)}
            except Exception as error:
                reply = {"error": repr(error)[:500]}
            signal.alarm(0)
            connection.send_bytes(json.dumps(reply).encode())


# Read at import, because the file may be edited during a long run.
_SERVE_SOURCE = inspect.getsource(_serve)


class _Worker:
    """One child process; only one thread at a time may call `ask`.

    Not multiprocessing: `spawn` and `forkserver` import the parent's main module again, which here
    is a trainer that imports JAX and may seize the accelerator, and `fork` copies a process with
    JAX's threads. This child imports math-verify only: it is ready after 0.5 s and takes 60 MB.
    Jobs travel as JSON, because pickle must never read what a model wrote.

    Raises:
      RuntimeError: if the process does not start.
    """

    def __init__(self, memory: int):
        self._connection, theirs = Pipe()
        with theirs:
            code = f"{_SERVE_SOURCE}\n_serve({theirs.fileno()}, {memory})"
            self.process = subprocess.Popen(
                # -P: without it a `types.py` in the current directory hides the standard one.
                [sys.executable, "-P", "-c", code],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # signals to the process group are for the trainer alone
            )
        reply = self._reply(_START_SECONDS)
        if "ready" not in reply:
            self.end()
            raise RuntimeError(
                f"the answer checker cannot import math_verify in a child process of "
                f"{sys.executable}, which reported {reply}; expected math-verify to be installed"
            )

    def ask(self, job: tuple[str, str], timeout: float) -> dict:
        """`{"equal": bool}` or `{"error": str}`; or `late` or `dead`, after which to call `end`."""
        with contextlib.suppress(OSError):  # it died while idle: the reply reports that
            self._connection.send_bytes(json.dumps([*job, timeout]).encode())
        return self._reply(timeout)

    def _reply(self, seconds: float) -> dict:
        try:
            if self._connection.poll(seconds):
                return json.loads(self._connection.recv_bytes())
            return {"late": seconds}
        except (EOFError, OSError):
            return {"dead": self.process.poll()}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._connection.close()


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().end()


class AnswerChecker:
    """Compares answers; math-verify runs in a pool of processes that can be killed.

    Any thread may use it. A process starts when a comparison needs one; all end with `close()`, at
    exit, or with the object.

    Attributes:
      timeouts: comparisons that took more than `timeout` seconds of wall time; they count as
        incorrect.
      errors: comparisons that raised in math-verify, or on which two processes died; they count as
        incorrect, too.

    Args:
      workers: the maximum number of processes; by default half of the CPUs, but at most 8.
      timeout: seconds for one comparison.
      memory: the address space of a process, in bytes.

    >>> with AnswerChecker(workers=1, timeout=5.0) as checker:
    ...     checker.check([("x + 1", "1 + x"), ("12", "13")])
    [True, False]
    """

    def __init__(self, workers: int | None = None, timeout: float = 5.0, memory: int = 4 * 2**30):
        self.timeout, self.memory = timeout, memory
        self.timeouts = self.errors = 0
        self._lock = threading.Lock()  # of the two counts
        self._idle: list[_Worker] = []
        size = workers or max(1, min(8, (os.cpu_count() or 2) // 2))
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="answer-checker")
        weakref.finalize(self, _end_all, self._idle)  # also runs at exit

    def check(
        self,
        pairs: Sequence[tuple[str, str]],
        timeout: float | None = None,
        kinds: Sequence[str | None] | None = None,
    ) -> list[bool]:
        """Whether each candidate equals its gold answer; a repeated pair is compared once.

        Args:
          timeout: seconds for one comparison, in place of the checker's own.
          kinds: of the gold answers: integer, latex or choice, or None to infer it.

        Raises:
          RuntimeError: if a process cannot start, or if one is needed after `close()`.
          ValueError: if the lengths differ.
        """
        kinds = [kind if kind in KINDS else None for kind in kinds or [None] * len(pairs)]
        cases = [(*pair, kind) for pair, kind in zip(pairs, kinds, strict=True)]
        verdicts = {case: decide(*case) for case in dict.fromkeys(cases)}
        jobs = {case: algebra(*case[:2]) for case, verdict in verdicts.items() if verdict is None}
        if jobs:
            seconds = self.timeout if timeout is None else timeout
            distinct = list(dict.fromkeys(jobs.values()))
            answers = self._threads.map(lambda job: self._ask(job, seconds), distinct)
            known = dict(zip(distinct, answers, strict=True))
            verdicts.update({case: known[job] for case, job in jobs.items()})
        return [verdicts[case] for case in cases]

    def _ask(self, job: tuple[str, str], timeout: float) -> bool:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self.memory)
        reply = worker.ask(job, timeout)
        if "dead" in reply:  # perhaps not because of this job
            worker.end()
            worker = _Worker(self.memory)
            reply = worker.ask(job, timeout)
        if "late" in reply or "dead" in reply:
            worker.end()
        else:
            self._idle.append(worker)
        with self._lock:
            self.timeouts += "late" in reply
            self.errors += "dead" in reply or "error" in reply
        return reply.get("equal", False)

    def waiting(self) -> list[int]:
        """Process ids of the children that wait for work."""
        return [worker.process.pid for worker in self._idle]

    def close(self) -> None:
        """Waits for running comparisons, then ends the processes."""
        self._threads.shutdown(cancel_futures=True)
        _end_all(self._idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


_default: AnswerChecker | None = None
_default_lock = threading.Lock()


def default_checker() -> AnswerChecker:
    """The checker that all comparisons of this process share."""
    global _default
    with _default_lock:
        if _default is None:
            _default = AnswerChecker()
        return _default


def checker_counts() -> dict[str, int]:
    """`timeouts` and `errors` of the default checker since the process started."""
    return {name: getattr(_default, name, 0) for name in ("timeouts", "errors")}


def answers_match(candidate: str, gold: str, timeout: float = 5.0, kind: str | None = None) -> bool:
    r"""Whether two answers are equal (`docs/answers.md`).

    An empty candidate is incorrect. If either answer is longer than `extraction.MAX_ANSWER_CHARS`,
    only identical strings are equal.

    Args:
      timeout: seconds after which a comparison by math-verify counts as incorrect.
      kind: of the gold answer: integer, latex or choice, or None or "" to infer it.

    >>> answers_match(r"\frac{1}{2}", "0.5")
    True
    >>> answers_match("(b) rain", "B", kind="choice")
    True
    """
    return default_checker().check([(candidate, gold)], timeout=timeout, kinds=[kind])[0]


def is_correct(completion: str, answer: str, kind: str | None = None) -> bool:
    r"""Whether a completion's answer (`extract_answer`) equals the gold answer (`answers_match`).

    >>> is_correct("<think>3*4 = 12</think><answer>12.0</answer>", "12")
    True
    >>> is_correct(r"so it is \boxed{7}", "8")
    False
    """
    return are_correct([completion], [answer], [kind])[0]


def are_correct(
    completions: Sequence[str],
    answers: Sequence[str],
    kinds: Sequence[str | None] | None = None,
) -> list[bool]:
    """`is_correct` of a batch, in parallel.

    Raises:
      ValueError: if the lengths differ.

    >>> are_correct(["<answer>7</answer>", "the answer is 8"], ["7", "9"])
    [True, False]
    """
    pairs = [
        (extract_answer(completion) or "", str(answer))
        for completion, answer in zip(completions, answers, strict=True)
    ]
    return default_checker().check(pairs, kinds=kinds)
