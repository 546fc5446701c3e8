"""The environment the embedded Triton server lives in: its binary and a thin numpy < 2 beside the main packages.

The server's Python backend was built against numpy 1: under numpy 2 it hands models wrong numbers without any error. So
the stub that runs a model gets an environment of its own that holds numpy 1.26 and nothing else, with the main
environment's packages (torch and the rest) visible behind it. What can be served, it does not know.

    <folder>/runtime/            made whole beside its place, then renamed; `runtime.json` says what it was made for
      bin/python                 first on PATH: the stub runs isolated and finds its packages by nothing but that
      lib/libpython3.11.so.1.0   a link: alone in its folder, so that no other library of that Python is picked up
      lib/python3.11/site-packages/{numpy, pytriton/tritonserver, nvidia_pytriton.libs, main_environment.pth}
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import filelock

from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import PACKAGE, subprocess_environment
from rvc_spark.tts.triton_install import install
from rvc_spark.tts.triton_log import OnProgress, report
from rvc_spark.tts.triton_platform import IN_PROCESS, Interpreter, check_platform, choose_interpreter

PYTRITON = "0.7.0"  # brings tritonserver 2.51.0; the one all facts about its behaviour were measured with
REQUIREMENTS = (f"nvidia-pytriton=={PYTRITON}", "numpy<2")
LAYOUT = 1  # of the folder; another number makes every runtime anew
NEEDED_BYTES = 600_000_000  # 170 MB stay, 75 MB are downloaded, as much is unpacked beside; measured, with a margin
LOCK_PATIENCE_S = 1_800.0  # a first install on a slow line; the lock dies with its owner
STAMP = "runtime.json"


@dataclass(frozen=True)
class Runtime:
    """A ready environment. `environment` is what a server must be started with, or its models see another Python."""

    folder: Path
    python: Path
    site: Path
    library_folder: Path

    @property
    def server(self) -> Path:
        """The tritonserver binary."""
        return self.site / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        """The backends folder, with the stub of this Python beside the Python backend."""
        return self.site / "pytriton" / "tritonserver" / "backends"

    @property
    def logs(self) -> Path:
        """Where servers started from here write their logs."""
        return self.folder.parent / "logs"

    def environment(self, **changes: str | None) -> dict[str, str]:
        """Variables for the server; `changes` as in `subprocess_environment`.

        The stub starts Python isolated: it ignores PYTHONPATH, PYTHONHOME and VIRTUAL_ENV and takes the first python on
        PATH for its own. Those three are removed all the same, for programs a model may start. Three models compute at
        once, each in a process of its own: with a thread for every core each they would wait for one another.
        """
        path = os.pathsep.join([str(self.python.parent), subprocess_environment().get("PATH", os.defpath)])
        settings: dict[str, str | None] = {
            "PATH": path, "LD_LIBRARY_PATH": str(self.library_folder), "PYTHONPATH": None, "PYTHONHOME": None,
            "VIRTUAL_ENV": None, "PYTHONDONTWRITEBYTECODE": None,
            "OMP_NUM_THREADS": subprocess_environment().get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2))),
        }  # fmt: skip
        return subprocess_environment(**{**settings, **changes})


def ensure_runtime(folder: Path, on_progress: OnProgress = None, *, offline: bool = False) -> Runtime:
    """The runtime in `folder` (config.triton_dir), made on the first call, made anew when damaged or outdated.

    Takes seconds and about 75 MB of downloads the first time, milliseconds later. `offline` forbids the download, not
    the use of one that is there. Several processes may call at once: one makes it, the others wait.
    Raises TritonBootError when this machine cannot have one, naming what it lacks.
    """
    check_platform()
    interpreter = choose_interpreter()
    place = folder / "runtime"
    stamp = _expected(interpreter)
    if _is_whole(place, stamp):
        return _at(place, interpreter)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "runtime.lock", timeout=LOCK_PATIENCE_S):
            if not _is_whole(place, stamp):
                _make(place, interpreter, on_progress, offline)
    except filelock.Timeout as error:
        raise TritonBootError(
            f"another process has been making {place} for {LOCK_PATIENCE_S / 60:.0f} minutes",
            "End that process, then try again.",
        ) from error
    except OSError as error:
        raise TritonBootError(
            f"the server's environment cannot be written to {place}: {error.strerror or error}",
            "Free some space or make the folder writable, then try again.",
        ) from error
    return _at(place, interpreter)


def _at(place: Path, interpreter: Interpreter) -> Runtime:
    python = "python{}.{}".format(*interpreter.version)
    return Runtime(place, place / "bin" / "python", place / "lib" / python / "site-packages", place / "lib")


def _expected(interpreter: Interpreter) -> dict[str, object]:
    """What a runtime must have been made for to be used: any difference makes it anew."""
    return {
        "layout": LAYOUT, "requirements": list(REQUIREMENTS), "python": list(interpreter.full_version),
        "base": str(interpreter.base), "library": str(interpreter.library), "behind": _behind(interpreter),
    }  # fmt: skip


def _behind(interpreter: Interpreter) -> list[str]:
    """Folders searched after the thin environment's own: the main packages, and where rvc_spark itself lies.

    The latter because an editable install is a .pth file inside the main packages, and .pth files there are not read.
    """
    folders = [str(folder) for folder in interpreter.packages]
    return folders if str(PACKAGE.parent) in folders else [*folders, str(PACKAGE.parent)]


def _is_whole(place: Path, expected: dict[str, object]) -> bool:
    """Whether a runtime is there, was made for this very machine and lacks none of its files."""
    try:
        stamp = json.loads((place / STAMP).read_text(encoding="utf-8"))
        sizes = stamp.pop("files")
        return stamp == expected and bool(sizes) and all((place / n).stat().st_size == s for n, s in sizes.items())
    except (OSError, ValueError, AttributeError, KeyError):
        return False


def _make(place: Path, interpreter: Interpreter, on_progress: OnProgress, offline: bool) -> None:
    for left in place.parent.glob(".runtime-*"):  # of a process that was killed at this
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(place.parent).free
    if free < NEEDED_BYTES:
        raise TritonBootError(
            f"{place.parent} has {free / 1e6:.0f} MB free; the Triton server needs {NEEDED_BYTES / 1e6:.0f} MB",
            f"Free some space, or set RVC_ROOT to a roomier disk. {IN_PROCESS}",
        )
    report(on_progress, 0.0, "making the environment of the Triton server")
    building = place.parent / f".runtime-{secrets.token_hex(4)}"
    try:
        install(building, interpreter, REQUIREMENTS, on_progress=on_progress, offline=offline)
        made = _at(building, interpreter)
        _arrange(made, interpreter)
        _try_out(made)
        sizes = {
            str(path.relative_to(building)): path.stat().st_size
            for path in building.rglob("*") if path.is_file() and path.suffix != ".pyc"
        }  # fmt: skip
        stamp = {**_expected(interpreter), "files": sizes}
        (building / STAMP).write_text(json.dumps(stamp), encoding="utf-8")
        if place.exists():
            os.rename(place, place.parent / f".runtime-{secrets.token_hex(4)}")
        os.rename(building, place)
    finally:
        for left in place.parent.glob(".runtime-*"):
            shutil.rmtree(left, ignore_errors=True)


def _arrange(runtime: Runtime, interpreter: Interpreter) -> None:
    """Put the stub of this Python where the backend looks for it; drop what a server started from here never opens."""
    triton = runtime.site / "pytriton" / "tritonserver"
    stubs = triton / "python_backend_stubs"
    own = stubs / "{}.{}".format(*interpreter.version) / "triton_python_backend_stub"
    if not own.is_file() or not runtime.server.is_file():
        raise TritonBootError(
            f"nvidia-pytriton {PYTRITON} came without the server or without a stub for Python "
            "{}.{}".format(*interpreter.version),
            f"The package index may hold another build. {IN_PROCESS}",
        )
    shutil.move(own, runtime.backends / "python" / own.name)
    shutil.rmtree(stubs)
    for library in (runtime.site / "nvidia_pytriton.libs").glob("libpython*"):  # only the stub of 3.13 needs it
        library.unlink()
    for item in (runtime.site / "pytriton").iterdir():
        if item.name != "tritonserver":
            shutil.rmtree(item) if item.is_dir() else item.unlink()
    (runtime.library_folder / interpreter.library.name).symlink_to(interpreter.library)
    lines = "".join(f"{folder}\n" for folder in _behind(interpreter))
    (runtime.site / "main_environment.pth").write_text(lines, encoding="utf-8")


def _try_out(runtime: Runtime) -> None:
    """Raises TritonBootError unless numpy < 2 is what this environment's Python imports."""
    command = [str(runtime.python), "-I", "-c", "import numpy; print(numpy.__version__)"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=runtime.environment(), check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode or not done.stdout.startswith("1."):
        said = (done.stderr.strip().splitlines() or [f"numpy {done.stdout.strip()}"])[-1]
        raise TritonBootError(
            f"the server's environment does not work: {said}", f"Try again with a fresh folder. {IN_PROCESS}"
        )
