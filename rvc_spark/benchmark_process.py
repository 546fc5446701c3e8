"""A process of its own that answers requests, one JSON line each way: what a measurement needs to be alone.

Peak memory never falls and a first call happens once, so both want a fresh process; two programs that are compared
must not share threads, memory or modules. Refuses to know what is asked.
"""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any, Self

from rvc_spark.errors import BenchmarkError
from rvc_spark.rvc_config import subprocess_environment

MARK = "@@rvc-spark "  # begins a line of answer; whatever else a program prints is passed over
LEAVE_SECONDS = 5
TAIL_CHARACTERS = 1_500  # of a dead process's last words


class Companion:
    """A running process. Use with `with`; `ask` sends a request and waits for its answer."""

    def __init__(self, command: Sequence[str], name: str, threads: int, **environment: str | None) -> None:
        """Start it.

        Args:
            name: for messages.
            threads: of OpenMP and MKL in it.
            environment: what differs from this process's; None removes a name.
        """
        self.name = name
        self._words: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self._folder = tempfile.TemporaryDirectory(prefix="rvc_spark_benchmark_")
        threading_of = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL")}
        changes = {"PYTHONDONTWRITEBYTECODE": "1", **threading_of, **environment}
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, text=True,
            encoding="utf-8", errors="replace", cwd=self._folder.name, env=subprocess_environment(**changes),
        )  # fmt: skip
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._answers.put(line[len(MARK) :])
        self._answers.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request. Raises BenchmarkError when it refuses, dies, or takes longer than `seconds`."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._dead() from None
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise BenchmarkError(
                f"{self.name} did not answer {request.get('do')!r} within {seconds:.0f} s", "Use shorter clips."
            ) from None
        if line is None:
            raise self._dead()
        reply = json.loads(line)
        if "error" in reply:
            raise BenchmarkError(f"{self.name}: {reply['error']}", "Correct that and measure again.")
        return reply

    def _dead(self) -> BenchmarkError:
        code = self._process.wait(LEAVE_SECONDS)
        self._words.seek(0)
        words = self._words.read()[-TAIL_CHARACTERS:].strip() or "it said nothing"
        return BenchmarkError(f"{self.name} ended with code {code}: {words}", "Correct that and measure again.")

    def close(self) -> None:
        """End it. Safe to call twice."""
        if self._process.stdin and not self._process.stdin.closed:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass  # it is dead already
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._words.close()
        self._folder.cleanup()
