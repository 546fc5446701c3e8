"""Which environment the set-up works in: find it, name its kind, ask its interpreter things, lock it.

It installs nothing and runs no command of the project; its callers do. Parses on Python 3.6 like them.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STAMP = "rvc_spark_setup.json"
LOCK_PATIENCE_S = 1800.0  # a first install on a slow line; the lock dies with its owner, so this only bounds a live one


class SetupProblem(Exception):
    """The set-up cannot go on; the message says why and what to do next."""


class Environment(NamedTuple):
    """Where to install: its folder and interpreter, what it is, why it was chosen, and whether this script made it."""

    prefix: Path
    kind: str
    reason: str
    ours: bool

    @property
    def python(self) -> str:
        return str(interpreter_of(self.prefix))


def say(text: str) -> None:
    """All talk goes to stderr: stdout belongs to the command that is run in the end."""
    print(text, file=sys.stderr, flush=True)


def interpreter_of(prefix: Path) -> Path:
    """The Python inside an environment folder, this very one if it is there; else a path that may not exist."""
    if prefix.resolve() == Path(sys.prefix).resolve():
        return Path(sys.executable)  # in /usr, `bin/python` may be another version than the one that runs
    places = [prefix / "bin" / "python", prefix / "bin" / "python3", prefix / "Scripts" / "python.exe"]
    places.append(prefix / "python.exe")  # conda on Windows
    return next((place for place in places if place.exists()), places[0])


def read_stamp(prefix: Path) -> "dict":
    """What an earlier set-up noted in an environment; empty when there is nothing readable."""
    try:
        content = json.loads((prefix / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_stamp(prefix: Path, content: "dict") -> None:
    """Note in an environment what was done to it; `made_here` is what allows a later run to mend or remake it."""
    beside = prefix / (STAMP + ".part")
    beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(str(beside), str(prefix / STAMP))


def child_environment() -> "dict[str, str]":
    """This process's variables without those that would leak another Python's packages into the chosen one."""
    leaks = ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV")
    kept = {name: value for name, value in os.environ.items() if name not in leaks}
    kept.update(PYTHONNOUSERSITE="1", PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    return kept


def ask(python: str, script: str, *arguments: str) -> "dict":
    """Run a short script in the chosen environment and read the JSON on its last line. Raises SetupProblem."""
    command = [python, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, env=child_environment(), check=False)
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    if done.returncode or not lines:
        tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise SetupProblem(
            f"{python} failed a check (exit {done.returncode}): {tail[0]}. "
            "Run again with --reinstall to make the environment anew."
        )
    return json.loads(lines[-1])


def python_version(prefix: Path) -> "tuple | None":
    """(major, minor) of the environment's interpreter; None when it is missing or does not run."""
    command = [str(interpreter_of(prefix)), "-c", "import sys; print(sys.version_info[0], sys.version_info[1])"]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment(), check=False, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    numbers = re.findall(rb"\d+", done.stdout)
    return (int(numbers[0]), int(numbers[1])) if done.returncode == 0 and len(numbers) == 2 else None


def kind_of(prefix: Path) -> str:
    """Name the tool an environment belongs to, by the traces that tool leaves."""
    config = prefix / "pyvenv.cfg"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    if (prefix / "conda-meta").is_dir():
        return "conda"
    if os.environ.get("POETRY_ACTIVE") or "pypoetry" in str(prefix):
        return "poetry"
    if os.environ.get("PIPENV_ACTIVE") or (prefix / ".project").is_file():
        return "pipenv"
    return "uv" if re.search(r"^uv\s*=", text, re.MULTILINE) else "venv"


def active_environment() -> "Environment | None":
    """Colab's runtime, or the environment this terminal or this interpreter is in; conda's base counts as none."""
    if os.environ.get("COLAB_RELEASE_TAG"):
        return Environment(Path(sys.prefix), "Colab", "this is a Colab runtime", False)
    candidates = []
    if sys.prefix != sys.base_prefix:
        candidates.append((sys.prefix, "this Python is in it"))
    if os.environ.get("VIRTUAL_ENV"):
        candidates.append((os.environ["VIRTUAL_ENV"], "VIRTUAL_ENV names it"))
    if os.environ.get("CONDA_PREFIX") and os.environ.get("CONDA_DEFAULT_ENV") not in (None, "base", "root"):
        candidates.append((os.environ["CONDA_PREFIX"], "CONDA_PREFIX names it"))
    for folder, reason in candidates:
        prefix = Path(folder).resolve()
        if not interpreter_of(prefix).exists():
            say(f"note: {folder}: {reason}, but there is no Python there")
        else:
            return Environment(prefix, kind_of(prefix), reason, made_here(prefix))
    return None


def made_here(prefix: Path) -> bool:
    """Whether this set-up made the environment, so that it may also mend and remake it."""
    return read_stamp(prefix).get("made_here") is True


def choose_environment(wanted: str) -> Environment:
    """The environment for an `--env` value; it may not exist yet. Raises SetupProblem."""
    if wanted in ("auto", "active"):
        active = active_environment()
        if active is not None:
            return active
        if wanted == "active":
            raise SetupProblem("No environment is active here. Activate one, or use --env new to make .venv.")
    own = wanted in ("auto", "new")
    prefix = ROOT / ".venv" if own else Path(wanted).expanduser().resolve()
    reason = "no environment is active" if wanted == "auto" else "--env " + wanted
    if prefix.exists() and not prefix.is_dir():
        raise SetupProblem(f"{prefix} is a file, not an environment. Move it away or use --env PATH.")
    if python_version(prefix) is not None:
        return Environment(prefix, kind_of(prefix), reason, made_here(prefix))
    looks_made = (prefix / "pyvenv.cfg").is_file() or any(prefix.glob(STAMP + "*"))
    if prefix.is_dir() and any(prefix.iterdir()) and not looks_made:
        raise SetupProblem(f"{prefix} is a folder but no environment. Move it away or use --env PATH.")
    return Environment(prefix, "venv", reason, True)


@contextlib.contextmanager
def only_one(environment: Environment) -> "object":
    """Hold the environment's lock: a second set-up waits. The system drops the lock when its owner dies."""
    beside = environment.prefix.parent / (environment.prefix.name + ".lock")
    path = beside if environment.ours else environment.prefix / "rvc_spark_setup.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(str(path), "a+b") as handle:
        deadline, told = time.monotonic() + LOCK_PATIENCE_S, False
        while not try_lock(handle):
            if time.monotonic() > deadline:
                raise SetupProblem(f"Another set-up still holds {path}. End it, then try again.")
            if not told:
                say(f"Another set-up is at work on {environment.prefix}; waiting for it.")
                told = True
            time.sleep(0.5)
        yield


def try_lock(handle: "object") -> bool:
    """Take an exclusive lock on an open file without waiting."""
    try:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
