r"""Answers on the host: cut the answer out of a completion and decide whether it is right. No JAX.

A completion is a plain string. Its answer is cut out first and only the answer is compared:
`<think>3*4 = 12</think><answer>12.5</answer>` holds the number 12 and is not a right answer to 12.
Numbers and choice letters are compared here; everything else goes to math-verify in child
processes that are killed when they hang (`\boxed{2^{2^{2^{2^{2^{2}}}}}}` never ends by itself).
The home of math-verify.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from multiprocessing.connection import Pipe
from typing import Self

MAX_ANSWER_CHARS = 2_000
_START_SECONDS = 60.0  # a cold network disk needs many; not part of a job's time-out

_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # `\\.` steps over \{ and \}
# [0-9] and not \d: int("１２") is 12 in Python, and a reader of ASCII answers would not see that.
_SIGN = r"(?:[+-]?(?:\\?\$)?|\\?\$[+-])"  # -12, $12, -$12, $-12
_NUMBER = re.compile(_SIGN + r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?")
_FRACTION = re.compile(
    r"([+-]?)(?:\\[dt]?frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}|([0-9]+)\s*/\s*([0-9]+))"
)
_CHOICE = re.compile(r"(?:\\(?:text|math)[a-z]*\s*\{)?\(?([A-Ea-e])\)?[.:]?\}?\.?")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


def extract_answer(completion: str) -> str | None:
    r"""Cut the final answer out of a completion; None if it has none.

    Rule: the last complete `<answer>...</answer>`; in it the last brace-balanced `\boxed{}` if it
    has one, else all of it, stripped. Without a complete span: the last brace-balanced `\boxed{}`
    after the last `</think>`, or anywhere if there is no think tag at all. Never "any number in
    the text". Time is linear in the length of the text, whatever the text.
    """
    start = completion.rfind("<answer>", 0, max(completion.rfind("</answer>"), 0))
    if start >= 0:
        start += len("<answer>")
        span = completion[start : completion.find("</answer>", start)]
        box = _last_box(span)
        return span.strip() if box is None else box
    _, closed, rest = completion.rpartition("</think>")
    if not closed and "<think>" in completion:
        return None
    return _last_box(rest)


def _last_box(text: str) -> str | None:
    """Content of the brace-balanced box that opens last; one pass, as restarts are quadratic."""
    first = text.find("\\boxed")
    if first < 0:
        return None
    opened, best = [], (-1, -1)
    for token in _BRACE.finditer(text, first):
        symbol = token[0]
        if symbol == "}":
            if opened:
                best = max(best, (opened.pop(), token.start()))
        elif symbol == "{":
            opened.append(-1)
        elif len(symbol) > 2:
            opened.append(token.end())
    return text[best[0] : best[1]].strip() if best[0] >= 0 else None


def _bare(text: str) -> str:
    """Strip white space and one pair of math delimiters, which math-verify does not need."""
    text = text.strip()
    for left, right in _DELIMITERS:
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            return text[len(left) : -len(right)].strip()
    return text


def _number(text: str) -> Decimal | None:
    return Decimal(re.sub(r"[\\$,]", "", text)) if _NUMBER.fullmatch(text) else None


def _decide(candidate: str, gold: str) -> bool | None:
    """Compare without math-verify; None where only math-verify can tell.

    Numbers are compared exactly (12.0 is 12, 12.0000001 is not; math-verify would round), so a
    gold integer needs no child process, and a choice letter is not an algebraic symbol here:
    math-verify takes `A=B` for B.
    """
    if not candidate or candidate == gold:
        return bool(candidate)
    if max(len(candidate), len(gold)) > MAX_ANSWER_CHARS:
        return False
    numbers = _number(candidate), _number(gold)
    if None not in numbers:
        return numbers[0] == numbers[1]
    chosen, right = _CHOICE.fullmatch(candidate), _CHOICE.fullmatch(gold)
    if chosen and right:
        return chosen[1].upper() == right[1].upper()
    return False if right and right[1].isupper() else None


def same_answer(one: str, other: str) -> bool:
    r"""Whether two answers surely say the same: equal texts, numbers or choices. No child process.

    1,000 and 1000.0 are the same, 0.5 and \frac{1}{2} too; x+1 and 1+x only for `answers_match`.
    """
    one, other = _bare(one), _bare(other)
    if one == other or _decide(one, other):
        return True
    values = _rational(one), _rational(other)
    return None not in values and values[0] == values[1]


def _rational(text: str) -> Fraction | None:
    """The exact value of a number, or of a fraction of whole numbers."""
    if len(text) > MAX_ANSWER_CHARS:
        return None
    found = _FRACTION.fullmatch(text)
    if found is None:
        number = _number(text)
        return None if number is None else Fraction(number)
    sign, over, under = found[1], found[2] or found[4], found[3] or found[5]
    if not int(under):
        return None
    return Fraction(int(over), int(under)) * (-1 if sign == "-" else 1)


def _serve(descriptor: int, memory: int) -> None:
    """Answer `[candidate, gold, timeout in s]` with `{"equal": bool}` or `{"error": str}`.

    Runs in the child, from source text, until EOF: it must not use a name of this module.
    """
    import contextlib
    import json
    import resource
    import signal
    from multiprocessing.connection import Connection

    connection = Connection(descriptor)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer alone
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default kills, even inside C code
    with contextlib.suppress(ValueError, OSError):  # macOS refuses
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except Exception as error:
        return connection.send_bytes(json.dumps({"failed": repr(error)}).encode())

    # LaTeX only: the other extractors look for any number in the text, and evaluate it as Python.
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def parsed(text):
        return parse(
            f"\\boxed{{{text}}}",
            config,
            extraction_mode="first_match",
            parsing_timeout=None,  # math-verify's own cannot interrupt C code
            raise_on_error=True,
        )

    connection.send_bytes(b'{"ready": true}')
    with contextlib.suppress(EOFError, OSError):
        while True:
            candidate, gold, timeout = json.loads(connection.recv_bytes())
            signal.alarm(int(timeout) + 10)  # should the parent die during a hang
            try:
                equal = verify(
                    parsed(gold), parsed(candidate), timeout_seconds=None, raise_on_error=True
                )
                reply = {"equal": bool(equal)}
            except Exception as error:
                reply = {"error": repr(error)[:500]}
            signal.alarm(0)
            connection.send_bytes(json.dumps(reply).encode())


# Read now: a file that was edited since the import would give another text later in a long run.
_SERVE_SOURCE = inspect.getsource(_serve)


class _Worker:
    """One child process; `ask` from one thread at a time. RuntimeError if it does not come up.

    A subprocess and not multiprocessing: `spawn` and `forkserver` import the parent's main module
    again, which here is a trainer that imports JAX and may seize the accelerator; `fork` copies a
    process with JAX's threads. This child imports math-verify alone: ready after 0.5 s, 60 MB.
    Jobs travel as JSON, since nothing that a model wrote should reach pickle.
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
            )
        reply = self._reply(_START_SECONDS)
        if "ready" not in reply:
            self.end()
            raise RuntimeError(
                f"The answer checker cannot start a child of {sys.executable} that imports "
                f"math_verify, is math-verify installed there? It said {reply}."
            )

    def ask(self, job: tuple[str, str], timeout: float) -> dict:
        """`{"equal": bool}`, `{"error": str}`; or `{"late": ...}`, `{"dead": ...}`: end it."""
        with contextlib.suppress(OSError):  # it died while idle: the reply says so
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
    """Decides equality of answers; math-verify runs in a pool of processes that can be killed.

    Usable from any thread. A process starts when an answer needs one; all end with `close()`, at
    exit, or with the object. A job that takes more than `timeout` seconds of wall time is wrong
    and adds 1 to `timeouts`; an exception in math-verify, or a job on which two processes died,
    is wrong and adds 1 to `errors`. `memory` is the address space of a process in bytes.
    """

    def __init__(self, workers: int | None = None, timeout: float = 5.0, memory: int = 4 * 2**30):
        self.timeout, self.memory = timeout, memory
        self.timeouts = self.errors = 0
        self._lock = threading.Lock()  # of the two counts
        self._idle: list[_Worker] = []
        size = workers or max(1, min(8, (os.cpu_count() or 2) // 2))
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="answer-checker")
        weakref.finalize(self, _end_all, self._idle)  # also runs at exit

    def check(self, pairs: Sequence[tuple[str, str]], timeout: float | None = None) -> list[bool]:
        """Whether each (candidate, gold) is equal, in order; equal pairs are asked once.

        RuntimeError if a process cannot be started, or after `close()` if one is needed.
        """
        pairs = [(_bare(candidate), _bare(gold)) for candidate, gold in pairs]
        verdicts = {pair: _decide(*pair) for pair in pairs}
        jobs = [pair for pair, verdict in verdicts.items() if verdict is None]
        if jobs:
            seconds = self.timeout if timeout is None else timeout
            answers = self._threads.map(lambda job: self._ask(job, seconds), jobs)
            verdicts.update(zip(jobs, answers, strict=True))
        return [verdicts[pair] for pair in pairs]

    def _ask(self, job: tuple[str, str], timeout: float) -> bool:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self.memory)
        reply = worker.ask(job, timeout)
        if "dead" in reply:  # perhaps not by its own fault
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

    def close(self) -> None:
        """Wait for the answers under way, then end the processes."""
        self._threads.shutdown(cancel_futures=True)
        _end_all(self._idle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc) -> None:
        self.close()


_default: AnswerChecker | None = None
_default_lock = threading.Lock()


def _default_checker() -> AnswerChecker:
    global _default
    with _default_lock:
        if _default is None:
            _default = AnswerChecker()
        return _default


def checker_counts() -> dict[str, int]:
    """`timeouts` and `errors` of the default checker since the start of the process, in jobs."""
    return {name: getattr(_default, name, 0) for name in ("timeouts", "errors")}


def answers_match(candidate: str, gold: str, timeout: float = 5.0) -> bool:
    """Whether two answers are equal: as numbers, choice letters, or for math-verify in `timeout` s.

    Numbers are exact and ASCII (`12.0`, `$1,234`, `-12`), letters A to E ignore case (`(b).`). An
    empty candidate, or one over `MAX_ANSWER_CHARS` that is not the same string, is wrong.
    """
    return _default_checker().check([(candidate, gold)], timeout=timeout)[0]


def is_correct(completion: str, answer: str) -> bool:
    """Whether the answer that is cut out of the completion equals the gold answer."""
    return are_correct([completion], [answer])[0]


def are_correct(completions: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """`is_correct` of a batch, in parallel. ValueError if the lengths differ."""
    pairs = [
        (extract_answer(completion) or "", str(answer))
        for completion, answer in zip(completions, answers, strict=True)
    ]
    return _default_checker().check(pairs)
