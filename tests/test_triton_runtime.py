"""The embedded server's environment: made once, made anew when it must be, and every machine that cannot have it.

The installer is faked where making is tested (the real one runs in test_triton_server.py), real where it is refused.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from rvc_spark.errors import TritonBootError
from rvc_spark.tts import triton_install, triton_platform, triton_runtime
from rvc_spark.tts.triton_install import install
from rvc_spark.tts.triton_platform import NEEDED_PACKAGES, check_platform, choose_interpreter
from rvc_spark.tts.triton_runtime import REQUIREMENTS, Runtime, ensure_runtime

PYTHON = "{}.{}".format(*sys.version_info)


def lacking() -> str:
    """What this machine lacks for a runtime; empty when nothing."""
    try:
        check_platform()
        choose_interpreter()
    except TritonBootError as error:
        return error.problem
    return ""


pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking() or "nothing lacks")


class Installer:
    """Makes in a moment what pip makes in seconds: the same files, empty."""

    def __init__(self) -> None:
        self.calls: list[Path] = []
        self.version = "1.26.4"
        self.before = lambda folder: None

    def __call__(self, folder: Path, interpreter, requirements, *, on_progress=None, offline=False) -> None:
        self.calls.append(folder)
        triton = folder / "lib" / f"python{PYTHON}" / "site-packages" / "pytriton" / "tritonserver"
        for name in ("bin/tritonserver", f"python_backend_stubs/{PYTHON}/triton_python_backend_stub"):
            (triton / name).parent.mkdir(parents=True)
            (triton / name).write_text("binary")
        (triton / "backends" / "python").mkdir(parents=True)
        (triton.parent / "__init__.py").touch()
        libraries = triton.parent.parent / "nvidia_pytriton.libs"
        libraries.mkdir()
        (libraries / "libpython3-1234.13.so.1.0").touch()
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f"#!/bin/sh\necho {self.version}\n")
        (folder / "bin" / "python").chmod(0o755)
        self.before(folder)


@pytest.fixture
def installer(monkeypatch) -> Installer:
    fake = Installer()
    monkeypatch.setattr(triton_runtime, "install", fake)
    return fake


def parts(folder: Path) -> list[str]:
    """What lies in a folder, without the lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_made_once_and_whole(installer, tmp_path) -> None:
    steps = []
    made = ensure_runtime(tmp_path / "deep" / "triton", steps.append)
    assert ensure_runtime(tmp_path / "deep" / "triton") == made and len(installer.calls) == 1
    assert steps[0].message == "making the environment of the Triton server"
    assert parts(made.folder.parent) == ["runtime"]
    assert made.server.is_file() and (made.backends / "python" / "triton_python_backend_stub").is_file()
    assert not list(made.site.glob("pytriton/*.py")) and not list(made.site.glob("nvidia_pytriton.libs/libpython*"))
    behind = (made.site / "main_environment.pth").read_text().splitlines()
    assert str(Path(triton_runtime.PACKAGE).parent) in behind
    assert any(Path(folder, "torch").is_dir() for folder in behind)
    (library,) = (path for path in made.library_folder.iterdir() if path.name.startswith("libpython"))
    assert library.resolve().is_file() and library.name == f"libpython{PYTHON}.so.1.0"
    variables = made.environment(A="b")
    assert variables["PATH"].startswith(str(made.folder / "bin") + os.pathsep) and variables["A"] == "b"
    assert variables["LD_LIBRARY_PATH"] == str(made.library_folder) and "PYTHONPATH" not in variables


def damage_stamp(made: Runtime) -> None:
    (made.folder / "runtime.json").write_text("{")


def damage_version(made: Runtime) -> None:
    stamp = json.loads((made.folder / "runtime.json").read_text())
    (made.folder / "runtime.json").write_text(json.dumps({**stamp, "python": [3, 11, 0]}))


def damage_server(made: Runtime) -> None:
    made.server.write_text("bin")


def damage_pth(made: Runtime) -> None:
    (made.site / "main_environment.pth").unlink()


def damage_folder(made: Runtime) -> None:
    shutil.rmtree(made.folder)
    made.folder.mkdir()


@pytest.mark.parametrize("damage", [damage_stamp, damage_version, damage_server, damage_pth, damage_folder])
def test_made_anew_when_damaged_or_outdated(installer, tmp_path, damage) -> None:
    made = ensure_runtime(tmp_path)
    damage(made)
    assert ensure_runtime(tmp_path).server.read_text() == "binary"
    assert len(installer.calls) == 2 and parts(tmp_path) == ["runtime"]


def test_several_at_once_make_it_once(installer, tmp_path) -> None:
    threads = [threading.Thread(target=ensure_runtime, args=(tmp_path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(installer.calls) == 1


def test_what_fails_half_way_leaves_nothing_and_the_old_one_stays(installer, tmp_path) -> None:
    made = ensure_runtime(tmp_path)
    (tmp_path / ".runtime-killed").mkdir()
    damage_version(made)

    def fail(folder: Path) -> None:
        raise TritonBootError("no package index answered", "Try later.")

    installer.before = fail
    with pytest.raises(TritonBootError, match="no package index"):
        ensure_runtime(tmp_path)
    assert parts(tmp_path) == ["runtime"] and made.server.is_file()
    installer.before, installer.version = (lambda folder: None), "2.4.6"
    with pytest.raises(TritonBootError, match="does not work: numpy 2.4.6"):
        ensure_runtime(tmp_path)
    installer.before = lambda folder: shutil.rmtree(next(folder.rglob("python_backend_stubs")))
    with pytest.raises(TritonBootError, match="without the server or without a stub for Python"):
        ensure_runtime(tmp_path)
    assert parts(tmp_path) == ["runtime"]


def test_no_disk_and_no_permission(installer, tmp_path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5 * 10**6))
        with pytest.raises(TritonBootError, match="has 5 MB free; the Triton server needs 600 MB"):
            ensure_runtime(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(TritonBootError, match="cannot be written"):
        ensure_runtime(tmp_path / "file" / "triton")
    assert installer.calls == []


# --- which machines


@pytest.mark.parametrize(
    "system, machine, libc, words",
    [
        ("Darwin", "arm64", ("", ""), "Linux on x86_64 only; this is Darwin on arm64"),
        ("Linux", "aarch64", ("glibc", "2.39"), "this is Linux on aarch64"),
        ("Linux", "x86_64", ("glibc", "2.31"), "glibc 2.35 or newer; this system has glibc 2.31"),
        ("Linux", "x86_64", ("", ""), "this system has another C library"),
    ],
)
def test_machines_that_cannot(installer, tmp_path, monkeypatch, system, machine, libc, words) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(TritonBootError, match=words) as caught:
        ensure_runtime(tmp_path)
    assert "tts='spark'" in caught.value.next_step and installer.calls == []


def test_a_new_enough_c_library(monkeypatch) -> None:
    for version in ("2.35", "2.100", "3.0"):
        monkeypatch.setattr(platform, "libc_ver", lambda version=version: ("glibc", version))
        check_platform()


@pytest.fixture
def told(monkeypatch, tmp_path) -> dict:
    """What every interpreter answers; the test alters it."""
    answer = {
        "version": [3, 12, 1], "base": str(tmp_path), "executable": "", "folders": [], "libdir": "", "multiarch": "",
        "missing": [],
    }  # fmt: skip
    monkeypatch.setattr(triton_platform, "_ask", lambda executable, needed: answer)
    monkeypatch.setattr(triton_platform.shutil, "which", lambda name: f"/opt/{name}" if name == "python3.12" else None)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libpython3.12.so.1.0").touch()
    return answer


class NewPython:
    """`sys` of a Python that numpy < 2 has no build for."""

    version_info = (3, 14, 0)
    executable = "/opt/python3.14"


def test_a_newer_python_looks_for_an_older_one_with_the_packages(told, monkeypatch) -> None:
    monkeypatch.setattr(triton_platform, "sys", NewPython)
    chosen = choose_interpreter()
    assert (chosen.executable, chosen.version) == (Path("/opt/python3.12"), (3, 12))
    told["missing"] = ["torch", "soxr"]
    words = "no build for Python 3.14; .*lacks torch, soxr; python3.11 is not installed"
    with pytest.raises(TritonBootError, match=words) as caught:
        choose_interpreter()
    assert "tts='spark'" in caught.value.next_step


def test_a_python_without_a_shared_library(told, monkeypatch, tmp_path) -> None:
    (tmp_path / "lib" / "libpython3.12.so.1.0").unlink()
    with pytest.raises(TritonBootError, match="without a shared library.*no libpython3.12.so.1.0"):
        choose_interpreter()
    place = tmp_path / "x" / "x86_64-linux-gnu"
    place.mkdir(parents=True)
    (place / "libpython3.12.so.1.0").touch()
    told |= {"libdir": str(tmp_path / "x"), "multiarch": "x86_64-linux-gnu"}
    assert choose_interpreter().library.parent == place


def test_this_python_is_asked_for_real(tmp_path, monkeypatch) -> None:
    chosen = choose_interpreter()
    assert chosen.full_version == tuple(sys.version_info[:3]) and chosen.library.is_file()
    assert any((folder / "torch").is_dir() for folder in chosen.packages)
    assert "torch" in NEEDED_PACKAGES
    dead = tmp_path / "python"
    dead.write_text("#!/bin/sh\nexit 3\n")
    dead.chmod(0o755)
    for executable in (str(dead), str(tmp_path / "nothing")):
        monkeypatch.setattr(triton_platform.sys, "executable", executable)
        with pytest.raises(TritonBootError, match="does not run"):
            choose_interpreter()


# --- the installer


def test_the_real_installer_refuses_offline(tmp_path) -> None:
    with pytest.raises(TritonBootError, match="not installed and offline mode is on"):
        install(tmp_path / "env", choose_interpreter(), ["no-such-package-of-anybody==1"], offline=True)


@pytest.mark.parametrize(
    "output, words",
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: Could not find a version",
            "no package index answered .ERROR: Could not find a version",
        ),
        ("ERROR: Could not install packages: [Errno 13] Permission denied: '/x'", "a folder is not writable"),
        ("ERROR: No matching distribution found for nvidia-pytriton==0.7.0", "has no build of the server"),
        ("something else", "cannot be installed: something else"),
        ("", "cannot be installed: no output"),
    ],
)
def test_the_installers_words_become_a_sentence(output, words) -> None:
    with pytest.raises(TritonBootError, match=words):
        raise triton_install._problem(output, offline=False)


def test_the_installers_lines_become_progress() -> None:
    lines = {
        "  Downloading nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl (55.4 MB)\n":
            "fetching nvidia_pytriton (55.4 MB)",
        "Processing /opt/numpy-1.26.4-cp311-cp311-manylinux_2_17_x86_64.whl\n": "numpy is at hand",
        "Installing collected packages: numpy, nvidia-pytriton\n": "unpacking the Triton server",
        "Collecting numpy<2\n": "",
    }  # fmt: skip
    assert {line: triton_install._told(line) for line in lines} == lines
    assert REQUIREMENTS == ("nvidia-pytriton==0.7.0", "numpy<2")
