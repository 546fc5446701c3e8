"""Long work in stages that can be resumed: what was done stays done until something it was made from changes.

A stage's marker holds a digest of its inputs and of the stage before it, so that a changed checkpoint, command line or
version makes everything that follows from it anew, and nothing else. Knows nothing of what the stages do.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvc_spark.errors import OutputError, TritonBootError
from rvc_spark.rvc_config import subprocess_environment
from rvc_spark.tts.triton_log import OnProgress, clean, report

KEPT_LINES = 200
_MARKERS = "done"

# How a failed program's own words map to a sentence: (piece of text, what is wrong, what to do).
_FAILURES = (
    ("no kernel image is available", "the GPU is too old for TensorRT-LLM", "It needs capability 8.0 or newer."),
    ("out of memory", "the GPU has not enough memory", "End other programs that use it, then try again."),
    ("No space left on device", "the disk is full", "Free 10 GB, then try again."),
    ("could not select device driver", "the container has no GPU", "Install the NVIDIA Container Toolkit."),
    ("CUDA driver version is insufficient", "the NVIDIA driver is too old", "Update it to the one the image asks for."),
    ("No module named", "the image lacks a Python package", "Build the image of this project, from its Dockerfile."),
    ("No such file or directory", "the image lacks a file", "Build the image of this project, from its Dockerfile."),
)


@dataclass(frozen=True)
class Stage:
    """One stage.

    name: of its marker. words: what people read while it runs. inputs: everything its result depends on, as text.
    produces: files or folders; without them a marker does not count. work: gets a place to report lines to.
    """

    name: str
    words: str
    inputs: Mapping[str, str]
    produces: tuple[Path, ...]
    work: Callable[[Callable[[str], None]], None]


def run_stages(stages: Sequence[Stage], folder: Path, on_progress: OnProgress = None) -> list[str]:
    """Do what is not done yet, in order; the names of the stages that ran. Interrupted, it goes on there next time.

    folder: for the markers. Raises what a stage raises; OutputError when a marker cannot be written.
    """
    key, ran = "", []
    for number, stage in enumerate(stages):
        key = _key(stage, key)
        begin, end = number / len(stages), (number + 1) / len(stages)
        if is_done(stage, folder, key):
            report(on_progress, end, f"{stage.words}: done before")
            continue
        _marker(stage, folder).unlink(missing_ok=True)
        report(on_progress, begin, stage.words)
        stage.work(lambda line, at=begin, words=stage.words: report(on_progress, at, f"{words}: {clean(line)[:100]}"))
        absent = [path.name for path in stage.produces if not path.exists()]
        if absent:
            raise TritonBootError(
                f"{stage.words}: it ended without an error but made no {', '.join(absent)}", "Try it once more."
            )
        _write_marker(stage, folder, key)
        ran.append(stage.name)
        report(on_progress, end, f"{stage.words}: done")
    return ran


def is_done(stage: Stage, folder: Path, key: str) -> bool:
    """Whether a stage was done with these very inputs and its results are still there."""
    try:
        told = _marker(stage, folder).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return False
    return told == key and all(path.exists() for path in stage.produces)


def files_key(paths: Sequence[Path]) -> str:
    """Names, sizes and times of files: enough to notice another checkpoint, without reading gigabytes."""
    rows = []
    for path in sorted(paths):
        found = path.stat()
        rows.append([path.name, found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class Programs:
    """Runs programs: as they are, or behind a prefix such as `docker run ... IMAGE`."""

    prefix: tuple[str, ...] = ()

    def command(self, command: Sequence[str]) -> list[str]:
        """The whole command line."""
        return [*self.prefix, *command]

    def run(self, command: Sequence[str], what: str, on_line: Callable[[str], None]) -> None:
        """Run one to its end, its lines reported. Raises TritonBootError with its last words; an interrupt ends it."""
        line_of = self.command(command)
        last: deque[str] = deque(maxlen=KEPT_LINES)
        try:
            with subprocess.Popen(
                line_of, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                encoding="utf-8", errors="replace", env=subprocess_environment(),
            ) as running:  # fmt: skip
                try:
                    for line in running.stdout or ():
                        if line.strip():
                            last.append(line.rstrip())
                            on_line(line.rstrip())
                except BaseException:
                    running.terminate()
                    raise
                code = running.wait()
        except OSError as error:
            raise TritonBootError(
                f"{what}: {line_of[0]} cannot be started ({error.strerror})", "Install it, or build the image."
            ) from error
        if code:
            raise _failure(what, code, list(last))


def fresh_folder(path: Path) -> Path:
    """A folder beside `path` to write into, empty; `put_in_place` gives it its name when it is whole."""
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def put_in_place(path: Path) -> None:
    """The result of `fresh_folder` becomes `path`; an earlier one goes."""
    shutil.rmtree(path, ignore_errors=True)
    os.replace(path.with_name(f"{path.name}.part"), path)


def _failure(what: str, code: int, lines: list[str]) -> TritonBootError:
    text = "\n".join(lines)
    words = clean(next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "it said nothing"))
    if code in (137, -9):
        return TritonBootError(f"{what}: the program was killed, most likely for memory", "Free memory (16 GB) for it.")
    for piece, problem, next_step in _FAILURES:
        if piece in text:
            return TritonBootError(f"{what}: {problem} ({words})", next_step)
    return TritonBootError(f"{what}: the program ended with status {code} ({words})", "Mend that, then run it again.")


def _key(stage: Stage, before: str) -> str:
    told = json.dumps([before, stage.name, dict(sorted(stage.inputs.items()))])
    return hashlib.sha256(told.encode()).hexdigest()


def _marker(stage: Stage, folder: Path) -> Path:
    return folder / _MARKERS / stage.name


def _write_marker(stage: Stage, folder: Path, key: str) -> None:
    path = _marker(stage, folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(key + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error})", "Check space and permissions.") from error
