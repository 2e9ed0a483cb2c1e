r"""Rewards on the host: cut the answer out, decide whether it is right, check the format. No JAX.

A completion is a plain string. Its answer is cut out first and only the answer is compared:
`<think>3*4 = 12</think><answer>12.5</answer>` holds the number 12 and is not a right answer to 12.
Numbers and choice letters are compared here; everything else goes to math-verify in child
processes that are killed when they hang (`\boxed{2^{2^{2^{2^{2^{2}}}}}}` never ends by itself).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from multiprocessing.connection import Pipe
from pathlib import Path
from types import ModuleType
from typing import Self

import numpy as np

from iapo_jax.errors import UserError

MAX_ANSWER_CHARS = 2_000
_START_SECONDS = 60.0  # a cold network disk needs many; not part of a job's time-out

_BRACE = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)  # `\\.` steps over \{ and \}
# [0-9] and not \d: int("１２") is 12 in Python, and a reader of ASCII answers would not see that.
_SIGN = r"(?:[+-]?(?:\\?\$)?|\\?\$[+-])"  # -12, $12, -$12, $-12
_NUMBER = re.compile(_SIGN + r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?")
_CHOICE = re.compile(r"(?:\\(?:text|math)[a-z]*\s*\{)?\(?([A-Ea-e])\)?[.:]?\}?\.?")
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))


class RewardError(UserError):
    """A reward function cannot be found, or returned what cannot be used as a reward."""


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
    except Exception as error:  # noqa: BLE001 (the parent raises it)
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
            except Exception as error:  # noqa: BLE001 (the parent counts it)
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


def whole_texts(prompts: Sequence[str], completions: Sequence[str]) -> list[str]:
    """Give back to each completion the `<think>` with which its prompt ended, if it did."""
    return [
        "<think>" + completion if prompt.rstrip().endswith("<think>") else completion
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def accuracy_reward(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns
) -> list[float]:
    """+1 for a right answer, -1 for a wrong or missing one (arXiv:2602.19049); `are_correct`.

    After a prompt that ends in `<think>`, a box in thinking that was never closed is no answer.
    """
    right = are_correct(whole_texts(prompts, completions), answer)
    return [1.0 if one else -1.0 for one in right]


def format_reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float]:
    """+0.5 for `<think>...</think>`, white space, `<answer>...</answer>`, else -0.5.

    White space may follow, nothing else; each of the four tags stands exactly once. A prompt that
    ends in `<think>` has opened the thinking, and the completion must not open it again. New lines
    are fine inside: the regex of the authors' code (arXiv:2602.19049) lacks DOTALL, so that each
    multi-line chain of thought costs 0.5 there, a pressure to one-line answers.
    """
    return [0.5 if _well_formed(text) else -0.5 for text in whole_texts(prompts, completions)]


def _well_formed(text: str) -> bool:
    # Counting, not a regex: two lazy groups backtrack quadratically over repeated tags.
    tags = ("<think>", "</think>", "<answer>", "</answer>")
    rest = text.partition("</think>")[2].strip()
    return (
        all(text.count(tag) == 1 for tag in tags)
        and text.startswith("<think>")
        and rest.startswith("<answer>")
        and rest.endswith("</answer>")
    )


REWARDS: dict[str, Callable] = {"accuracy": accuracy_reward, "format": format_reward}


def load_reward(spec: str) -> Callable:
    """Find a reward function: `accuracy`, `format`, `path/to/file.py:name`, `package.module.name`.

    It is called as in TRL: `fn(prompts=, completions=, answer=, **columns) -> list[float | None]`,
    one entry per completion. RewardError if the file, the module or the name is missing, or if
    what it names is not callable.
    """
    if spec in REWARDS:
        return REWARDS[spec]
    place, separator, name = spec.rpartition(":" if ".py:" in spec else ".")
    if not separator or not place or not name:
        raise RewardError(
            f"Reward {spec!r} is none of {', '.join(REWARDS)}; expected one of these, "
            "'path/to/file.py:name' or 'package.module.name'."
        )
    module = _load_module(spec, place, is_file=separator == ":")
    if not hasattr(module, name):
        raise RewardError(f"Reward {spec!r}: {place} was found but defines no {name!r}.")
    function = getattr(module, name)
    if not callable(function):
        raise RewardError(
            f"Reward {spec!r} is a {type(function).__name__}; expected a function "
            "fn(prompts, completions, answer, **columns) -> list of floats."
        )
    return function


def _load_module(spec: str, place: str, *, is_file: bool) -> ModuleType:
    if is_file and not Path(place).is_file():
        raise RewardError(f"Reward {spec!r}: there is no file {place!r} in {Path.cwd()}.")
    try:
        if not is_file:
            return importlib.import_module(place)
        found = importlib.util.spec_from_file_location(f"reward_file_{Path(place).stem}", place)
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses look up the module of a class by name
        found.loader.exec_module(module)
        return module
    except Exception as error:
        raise RewardError(f"Reward {spec!r}: importing {place} raised {error!r}.") from error


def combine_rewards(
    functions: Sequence[tuple[str, Callable]],
    weights: Sequence[float],
    prompts: Sequence[str],
    completions: Sequence[str],
    answer: Sequence[str],
    **columns,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Weighted sum of reward functions: total_i = sum_f w_f r_fi.

    Returns the total and each function's own unweighted rewards by name, all [N] float32. None
    ("does not apply to this row") counts as 0, as in TRL. RewardError, naming the function, the
    row and what came back, if a function raises, returns another number of entries than N, or
    returns something that is not a finite number.
    """
    names = [name for name, _ in functions]
    weights = [float(weight) for weight in weights]
    if (
        len(set(names)) != len(weights)
        or len(names) != len(weights)
        or not all(map(math.isfinite, weights))
    ):
        raise RewardError(
            f"Expected distinct names and one finite weight for each: got {names} and {weights}."
        )
    rewards = {}
    for name, function in functions:
        try:
            values = function(prompts=prompts, completions=completions, answer=answer, **columns)
        except Exception as error:
            rows = f"rows 0 to {len(completions) - 1}"
            raise RewardError(f"Reward {name!r} raised {error!r} for {rows}.") from error
        rewards[name] = _as_rewards(name, values, len(completions))
    total = np.zeros(len(completions), np.float32)
    for name, weight in zip(names, weights, strict=True):
        total += np.float32(weight) * rewards[name]
    return total, rewards


def _as_rewards(name: str, values, rows: int) -> np.ndarray:
    listed = hasattr(values, "__len__") and not isinstance(values, (str, dict))
    found = f"{len(values)} entries" if listed else f"a {type(values).__name__}"
    if not listed or len(values) != rows:
        raise RewardError(
            f"Reward {name!r} returned {values!r:.200}, {found}; "
            f"expected a list of {rows} numbers, one for each completion."
        )
    rewards = np.zeros(rows, np.float32)
    for row, value in enumerate(values):
        number = _finite(value)
        if number is None:
            raise RewardError(
                f"Reward {name!r} returned {value!r:.200} for row {row}; expected a finite "
                "number, or None for 0."
            )
        rewards[row] = number
    return rewards


def _finite(value) -> float | None:
    """The value as a number that float32 can hold (None is 0); None if it is no such number."""
    if value is None:
        return 0.0
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= float(np.finfo(np.float32).max) else None
