"""Which machines and which Pythons the embedded Triton server runs on. Looks only; installs and starts nothing."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import subprocess_environment

MIN_GLIBC = (2, 35)  # of the wheel that brings the server: Ubuntu 22.04, Debian 12 and later
PYTHONS = ((3, 12), (3, 11))  # rvc_spark needs 3.11; numpy < 2 has no build for 3.13
NEEDED_PACKAGES = ("torch", "numpy", "tokenizers", "pydantic_settings", "soxr", "soundfile")
IN_PROCESS = "Without it the engine in this process speaks the same voice: tts='spark'."

_ASK = """
import importlib.util, json, os, sys, sysconfig
needed = sys.argv[1:]
folders = [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages") and os.path.isdir(p)]
names = [sysconfig.get_config_var(n) or "" for n in ("LIBDIR", "MULTIARCH")]
print(json.dumps({
    "version": sys.version_info[:3], "base": sys.base_prefix, "executable": sys.executable, "folders": folders,
    "libdir": names[0], "multiarch": names[1], "missing": [n for n in needed if importlib.util.find_spec(n) is None],
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python the stub can be: its program, its shared library, and the folders of its packages."""

    executable: Path
    full_version: tuple[int, int, int]
    base: Path
    library: Path  # libpython3.11.so.1.0
    packages: tuple[Path, ...]

    @property
    def version(self) -> tuple[int, int]:
        """(major, minor)."""
        return self.full_version[:2]


def check_platform() -> None:
    """Raises TritonBootError where the server's binary cannot run: not Linux on x86_64, or too old a C library."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        raise TritonBootError(
            f"the embedded Triton server exists for Linux on x86_64 only; this is {system} on {machine}",
            f"Use a server on another machine (TRITON_SERVER_ADDR) or Docker. {IN_PROCESS}",
        )
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if name != "glibc" or numbers < MIN_GLIBC:
        raise TritonBootError(
            f"the embedded Triton server needs glibc 2.35 or newer; this system has {name or 'another C library'} "
            f"{version}".rstrip(),
            f"Use Ubuntu 22.04, Debian 12 or newer, or Docker. {IN_PROCESS}",
        )


def choose_interpreter() -> Interpreter:
    """The Python for the stub: this one where it can be, else a 3.12 or 3.11 that has the packages the models need.

    Raises TritonBootError naming what each candidate lacks.
    """
    if sys.version_info[:2] in PYTHONS:
        return _examined(sys.executable, ())
    here = "{}.{}".format(*sys.version_info)
    reasons = []
    for version in PYTHONS:
        name = "python{}.{}".format(*version)
        found = shutil.which(name)
        if found is None:
            reasons.append(f"{name} is not installed")
            continue
        try:
            return _examined(found, NEEDED_PACKAGES)
        except TritonBootError as error:
            reasons.append(error.problem)
    raise TritonBootError(
        f"the embedded Triton server needs numpy older than 2, which has no build for Python {here}; "
        + "; ".join(reasons),
        f"Install rvc-spark for Python 3.12 beside this one, or use a server elsewhere. {IN_PROCESS}",
    )


def _examined(executable: str, needed: tuple[str, ...]) -> Interpreter:
    told = _ask(executable, needed)
    version = tuple(told["version"])
    name = "Python {}.{}.{} ({})".format(*version, executable)
    if version[:2] not in PYTHONS:
        raise TritonBootError(f"{name} is not the version its name promises", IN_PROCESS)
    if told["missing"]:
        raise TritonBootError(f"{name} lacks {', '.join(told['missing'])}", f"Install them there. {IN_PROCESS}")
    library = _shared_library(told, version)
    if library is None:
        raise TritonBootError(
            f"{name} was built without a shared library, which the server's model processes need: "
            "no libpython{}.{}.so.1.0".format(*version) + f" in {told['libdir'] or told['base']}",
            "On Debian or Ubuntu: apt install libpython{}.{}; elsewhere".format(*version)
            + f" use a Python built with --enable-shared, as uv and conda have. {IN_PROCESS}",
        )
    folders = tuple(Path(folder) for folder in told["folders"])
    return Interpreter(Path(executable), version, Path(told["base"]), library, folders)


def _ask(executable: str, needed: tuple[str, ...]) -> dict:
    """What an interpreter says of itself. Raises TritonBootError when it does not run."""
    command = [executable, "-c", _ASK, *needed]
    try:
        done = subprocess.run(
            command, capture_output=True, check=True, timeout=60, stdin=subprocess.DEVNULL,
            env=subprocess_environment(PYTHONPATH=None, PYTHONHOME=None),
        )  # fmt: skip
        return json.loads(done.stdout.decode("utf-8").strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise TritonBootError(f"{executable or 'this Python'} does not run: {error}", IN_PROCESS) from error


def _shared_library(told: dict, version: tuple[int, ...]) -> Path | None:
    """libpython of that very installation; a system-wide one serves only the system's own Python."""
    name = "libpython{}.{}.so.1.0".format(*version)
    base = Path(told["base"])
    folders = [base / "lib"]  # first: builds that were moved still carry the LIBDIR of the machine they were made on
    if told["libdir"]:
        folders += [Path(told["libdir"]), Path(told["libdir"]) / told["multiarch"]]
    if base == Path("/usr"):
        folders += [base / "lib" / "x86_64-linux-gnu", base / "lib64"]
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
