"""Make an environment and install wheels into it, with pip's output followed. Does not know what they are for."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import subprocess_environment
from rvc_spark.tts.triton_log import OnProgress, report
from rvc_spark.tts.triton_platform import IN_PROCESS, Interpreter

# How an installer's own words map to a sentence: (pattern, what is wrong, what to do).
FAILURES = (
    (r"No space left on device|Errno 28", "the disk is full", "Free 1 GB, or set TMPDIR to a roomier disk."),
    (
        r"NewConnectionError|name resolution|Network is unreachable|ProxyError|ConnectTimeoutError|ReadTimeoutError"
        r"|Connection (?:refused|reset|aborted)|NameResolutionError|CERTIFICATE_VERIFY_FAILED|[Ff]ailed to fetch"
        r"|dns error",
        "no package index answered",
        "Check the network or the proxy; behind a mirror set PIP_INDEX_URL.",
    ),
    (r"Permission denied|Errno 13", "a folder is not writable", "Make it yours, or set RVC_ROOT to one that is."),
    (
        r"No matching distribution found|No solution found",
        "the package index has no build of the server for this Python and system",
        "nvidia-pytriton 0.7.0 must be on it.",
    ),
)


def install(
    folder: Path, interpreter: Interpreter, requirements: Sequence[str], *, on_progress: OnProgress = None,
    offline: bool = False,
) -> None:  # fmt: skip
    """Make `folder` a virtual environment of `interpreter` with exactly `requirements`, without what those require.

    `offline` lets the installer take wheels from its configured folders but open no connection. Raises TritonBootError.
    """
    patience = subprocess_environment(
        PYTHONPATH=None, PYTHONHOME=None, VIRTUAL_ENV=None, PIP_TARGET=None, PIP_PREFIX=None, PIP_USER="0",
        PIP_REQUIRE_VIRTUALENV=None, PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_RETRIES="2",
    )  # fmt: skip
    has_pip, uv = importlib.util.find_spec("pip") is not None, shutil.which("uv")
    own_pip = not has_pip and uv is None
    bare = [] if own_pip else ["--without-pip"]
    _follow([str(interpreter.executable), "-m", "venv", *bare, str(folder)], patience, None, offline)
    python = str(folder / "bin" / "python")
    if has_pip:
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--progress-bar", "off", "--no-compile"]
    elif uv is not None:
        command = [uv, "pip", "install", "--python", python]
    else:
        command = [python, "-m", "pip", "install", "--progress-bar", "off", "--no-compile"]
    command += ["--no-index"] if offline else []
    _follow([*command, "--no-deps", "--only-binary", ":all:", *requirements], patience, on_progress, offline)


def _follow(command: list[str], variables: dict[str, str], on_progress: OnProgress, offline: bool) -> None:
    """Run an installer to its end; its telling lines become progress between 0.1 and 0.4. Raises TritonBootError."""
    lines: list[str] = []
    with _started(command, variables) as running:
        for line in running.stdout:
            lines.append(line.rstrip())
            if told := _told(line):
                report(on_progress, min(0.1 + 0.1 * len([1 for one in lines if _told(one)]), 0.4), told)
        code = running.wait()
    if code:
        raise _problem("\n".join(lines), offline)


@contextmanager
def _started(command: list[str], variables: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    try:
        running = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=variables,
            text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise TritonBootError(f"{command[0]} does not run: {error.strerror}", IN_PROCESS) from error
    try:
        yield running
    finally:
        if running.poll() is None:  # the wait was interrupted
            running.terminate()
            running.wait()
        running.stdout.close()


def _told(line: str) -> str:
    """The few lines of an installer that a waiting person wants."""
    size = re.match(r"\s*Downloading (\S+?)-\d\S* \(([\d.]+ [kMG]B)\)", line)
    if size:
        return f"fetching {size[1]} ({size[2]})"
    if line.startswith("Installing collected packages"):
        return "unpacking the Triton server"
    found = re.match(r"\s*(?:Using cached|Processing) (?:\S*/)?(\S+?)-\d", line)
    return f"{found[1]} is at hand" if found else ""


def _problem(output: str, offline: bool) -> TritonBootError:
    """An installer's output as one sentence that says what is wrong and what to do."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(ERROR|Error|error|×)", line)] or lines[-1:] or ["no output"]
    words = named[0][:300].rstrip(". ")
    if offline:
        return TritonBootError(
            f"the Triton server is not installed and offline mode is on ({words})",
            f"Go online once, or unset RVC_SPARK_OFFLINE. {IN_PROCESS}",
        )
    for pattern, problem, next_step in FAILURES:
        if re.search(pattern, output):
            return TritonBootError(f"{problem} ({words})", f"{next_step} {IN_PROCESS}")
    return TritonBootError(f"the Triton server cannot be installed: {words}", f"Mend that, then retry. {IN_PROCESS}")
