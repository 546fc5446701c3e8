#!/usr/bin/env python3
"""From a fresh clone to a running command: make an environment, install into it, check what works, run what was asked.

    python3 tools/setup_environment.py demo                      a sentence in a converted voice
    python3 tools/setup_environment.py test                      the tests and the notebooks (what CI runs)
    python3 tools/setup_environment.py notebook | doctor | none  JupyterLab, a report, or only the set-up
    python3 tools/setup_environment.py -- convert in.wav --output out.wav         any rvc-spark arguments

--env auto (default) takes Colab's runtime or the active environment (venv, conda, uv, poetry, pipenv) and else makes
`.venv` in the checkout; `active`, `new` and a PATH choose by hand. Needs the standard library and pip, nothing else.

It knows packages and environments, not voices: what models can do is `rvc-spark doctor`'s business. It parses on
Python 3.6, so that an old interpreter gets a sentence instead of a SyntaxError; hence no newer syntax below.
"""

import argparse
import errno
import os
import shutil
import subprocess
import sys
import time

from environments import (
    ROOT,
    Environment,
    SetupProblem,
    ask,
    child_environment,
    choose_environment,
    only_one,
    python_version,
    read_stamp,
    say,
    write_stamp,
)
from installation import fingerprint, install, installed_versions, make_environment, plain, remove_environment

MOST_TEST_PROCESSES = 4  # each takes up to 1 GB
OLDEST_PYTHON = (3, 11)
COLAB_EXTRAS = "pitch,drive,covers,profiles,watermark"  # it has a notebook server; tritonclient and its protobuf differ
COMMANDS = ("demo", "test", "doctor", "notebook", "none")
MENDABLE_EXTENSIONS = ("_torchaudio", "libtorchaudio", "torchaudio_prefixctc")

# What it is for, the modules behind it, and whether nothing works without it.
PARTS = (
    ("conversion", "torch faiss", True),
    ("sound files", "soundfile soxr av scipy", True),
    ("speech", "espeakng_loader", True),
    ("command line", "rich pydantic_settings yaml", True),
    ("notebook cells", "IPython ipywidgets anywidget matplotlib", True),
    ("pitch: pm", "parselmouth", True),
    ("pitch: fcpe", "torchfcpe", False),
    ("pitch: crepe", "torchcrepe", False),
    ("pitch: harvest, dio", "pyworld", False),
    ("song covers", "demucs", False),
    ("lead and backing", "onnxruntime", False),
    ("downloads", "httpcore filelock", True),
    ("Google Drive", "gdown", False),
    ("Triton client", "tritonclient", False),
    ("notebook runs", "papermill nbval jupyterlab voila", False),
    ("browser tests", "playwright", False),
    ("tests", "pytest pytest_timeout xdist hypothesis", False),
)

DISTRIBUTIONS = {  # where the name to install is not the name to import
    "faiss": "faiss-cpu",
    "parselmouth": "praat-parselmouth",
    "yaml": "pyyaml",
    "xdist": "pytest-xdist",
}

IMPORTS_SCRIPT = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        found[name] = ""
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError, SyntaxError) as problem:
        found[name] = (type(problem).__name__ + ": " + str(problem).strip().split("\\n")[0])[:120]
torch = sys.modules.get("torch")
device = "no torch" if torch is None else torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
print(json.dumps({"found": found, "device": device}))
"""

EXTENSIONS_SCRIPT = """
import ctypes, importlib.util, json, pathlib, sys
import torch
spec, unloadable = importlib.util.find_spec("torchaudio"), []
for place in (spec.submodule_search_locations or []) if spec else []:
    for path in sorted(pathlib.Path(place, "lib").glob("*")):
        if path.suffix in (".so", ".pyd", ".dylib") and path.name.startswith(tuple(sys.argv[1:])):
            try:
                ctypes.CDLL(str(path))
            except OSError:
                unloadable.append(str(path))
print(json.dumps({"cuda": torch.version.cuda, "unloadable": unloadable}))
"""


# --------------------------------------------------------------------------------------------------- verify


def mend_torchaudio(environment: Environment, allowed: bool) -> str:
    """A CPU torch beside a CUDA build of torchaudio: extensions that cannot load make `import torchaudio` fail.

    Nothing here uses them (they serve forced alignment and CTC decoding), and torchaudio imports cleanly without them,
    so they are removed; `pip install --force-reinstall --no-deps torchaudio` brings them back.

    Returns:
        what was found or done, as a line for the table; empty when there was nothing to mend.
    """
    state = ask(environment.python, EXTENSIONS_SCRIPT, *MENDABLE_EXTENSIONS)
    if state["cuda"] or not state["unloadable"]:
        return ""
    if not allowed:
        return "a CUDA build beside a CPU torch; run again with --repair to remove the extensions that cannot load"
    for path in state["unloadable"]:
        os.remove(path)
    return "mended: {} CUDA extensions removed, as torch is a CPU build".format(len(state["unloadable"]))


def verify(environment: Environment, repair: bool) -> "dict":
    """Import every part in the environment, print the table, and return what was found.

    Raises SetupProblem when a part is missing without which nothing works.
    """
    installed = installed_versions(environment)
    mended = ""
    if "torchaudio" in installed and "torch" in installed:
        mended = mend_torchaudio(environment, allowed=environment.ours or repair)
    modules = [module for _, names, _ in PARTS for module in names.split()]
    answer = ask(environment.python, IMPORTS_SCRIPT, *modules)
    found, missing = answer["found"], []
    say(f"\n  what works in {environment.prefix} ({environment.kind})")
    for purpose, names, required in PARTS:
        problems = [f"{name}: {found[name]}" for name in names.split() if found[name]]
        if problems and required:
            missing.extend(problems)
        detail = problems[0] if problems else ", ".join(with_version(name, installed) for name in names.split())
        say("  {:<4} {:<21} {}".format("no" if problems else "yes", purpose, detail))
    if mended:
        say(f"  note torchaudio            {mended}")
    say("  note device                {}\n".format(answer["device"]))
    if missing:
        raise SetupProblem(
            f"rvc_spark cannot work without {missing[0]}. Run again with --reinstall; if it stays, use --env new."
        )
    return {"parts": {name: not problem for name, problem in found.items()}, "device": answer["device"]}


def with_version(module: str, installed: "dict") -> str:
    """`torch 2.13.0+cpu`, where the distribution's name is not always the module's."""
    distribution = DISTRIBUTIONS.get(module, plain(module))
    return "{} {}".format(distribution, installed.get(distribution, "")).strip()


# ------------------------------------------------------------------------------------------------------ run


def set_up(environment: Environment, reinstall: bool, repair: bool, cpu_wheels: bool = False) -> None:
    """Bring the environment to the state the project wants; quick when an earlier run did. Raises SetupProblem."""
    prefix = environment.prefix
    extras = COLAB_EXTRAS if environment.kind == "Colab" else "all"
    with only_one(environment):
        if reinstall and environment.ours:
            remove_environment(environment)
        make_environment(environment)
        version = python_version(prefix)
        if version is None or version < OLDEST_PYTHON:
            raise SetupProblem(
                "The Python in {} is {}; rvc_spark needs {}.{} or newer. Use --env new or another one.".format(
                    prefix, ".".join(map(str, version or ("broken",))), *OLDEST_PYTHON
                )
            )
        stamp, wanted = read_stamp(prefix), fingerprint(environment, extras)
        if stamp.get("state") == "ready" and stamp.get("fingerprint") == wanted and not reinstall and not repair:
            gone = sorted(set(stamp.get("installed", [])) - set(installed_versions(environment)))
            if not gone:
                say("Environment: {} ({}), ready since {}.".format(prefix, environment.reason, stamp.get("when")))
                return
            say("No longer installed: {}.".format(", ".join(gone)))
        started = time.monotonic()
        say(f"Environment: {prefix} ({environment.kind}; {environment.reason}).")
        install(environment, extras, cpu_wheels)
        say(f"Installed in {time.monotonic() - started:.0f} s; checking what works.")
        report = verify(environment, repair)
        report.update(state="ready", fingerprint=wanted, when=time.strftime("%Y-%m-%d %H:%M"))
        report.update(made_here=environment.ours, installed=sorted(installed_versions(environment)))
        write_stamp(prefix, report)


def at_once(arguments: "list") -> "list":
    """Options that spread the test files over the cores, unless the caller chose tests or options of his own."""
    if arguments:
        return []
    # in the order of tests/conftest.py, which puts the longest files first
    processes = str(min(os.cpu_count() or 1, MOST_TEST_PROCESSES))
    return ["-q", "-n", processes, "--dist", "loadfile", "--no-loadscope-reorder"]


def run_command(environment: Environment, command: str, arguments: "list") -> int:
    """Run one command in the environment and return its exit code; tests and notebooks run from the checkout."""
    lines = {
        "test": ["-m", "pytest", *at_once(arguments)] + arguments,
        "notebook": ["-m", "jupyterlab", os.path.join("notebooks", "start.ipynb")] + arguments,
        "--": ["-P", "-m", "rvc_spark", *arguments],
    }
    line = lines.get(command, ["-P", "-m", "rvc_spark", command, *arguments])
    folder = str(ROOT) if command in ("test", "notebook", "demo") else None
    variables = child_environment()
    if command == "test":  # each process computes on one core; torch's threads would wait for one another
        variables.setdefault("OMP_NUM_THREADS", "1")
    running = subprocess.Popen([environment.python] + line, cwd=folder, env=variables)
    while True:
        try:
            code = running.wait()
            return code if code >= 0 else 128 - code  # killed by a signal: what a shell would report
        except KeyboardInterrupt:
            continue  # the command got the same signal and ends in its own time, with its own exit code


def parse(arguments: "list") -> "tuple":
    """(options, command, its arguments): what follows the command, or follows `--`, is the command's own."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] " + "|".join(COMMANDS) + " [its arguments] | -- rvc-spark arguments",
    )
    parser.add_argument(
        "--env", default="auto", metavar="auto|active|new|PATH", help="where to install (default: auto)"
    )
    parser.add_argument("--reinstall", action="store_true", help="make our environment anew; elsewhere, install again")
    parser.add_argument(
        "--repair", action="store_true", help="allow mending torchaudio in an environment not made here"
    )
    parser.add_argument(
        "--cpu-wheels",
        action="store_true",
        help="take PyTorch's CPU builds from download.pytorch.org, where the package index would send 3 GB of CUDA",
    )
    cut = 0
    while cut < len(arguments) and arguments[cut].startswith("--") and arguments[cut] != "--":
        cut += 2 if arguments[cut] == "--env" else 1
    options = parser.parse_args(arguments[:cut])
    command, rest = (arguments[cut], arguments[cut + 1 :]) if cut < len(arguments) else ("none", [])
    if command not in (*COMMANDS, "--"):
        parser.error(f"there is no command {command!r}; use {', '.join(COMMANDS)}, or -- and rvc-spark arguments")
    return options, command, rest


def too_old(arguments: "list") -> str:
    """What to tell somebody whose Python is too old: the command again, with a newer one if this machine has it."""
    newer = ""
    for name in ("python3.13", "python3.12", "python3.11"):
        place = shutil.which(name)
        if place and subprocess.run([place, "-c", ""], stderr=subprocess.DEVNULL, check=False).returncode == 0:
            newer = newer or "Run: {} {} {}".format(name, sys.argv[0], " ".join(arguments))
    return "This is Python {}.{}; rvc_spark needs {}.{} or newer. {}".format(
        *sys.version_info[:2], *OLDEST_PYTHON, newer or "Install one from python.org or your system's packages."
    )


def main(arguments: "list") -> int:
    """Set up and run; exit code of the command, 1 when the set-up cannot go on, 130 when it was interrupted."""
    if sys.version_info < OLDEST_PYTHON:
        say(too_old(arguments))
        return 1
    options, command, rest = parse(arguments)
    try:
        environment = choose_environment(options.env)
        set_up(environment, options.reinstall, options.repair, options.cpu_wheels)
    except SetupProblem as problem:
        say(f"setup: {problem}")
        return 1
    except OSError as problem:
        full = problem.errno == errno.ENOSPC
        cure = (
            "Free 4 GB there, then run the same command again" if full else "Check that the place exists and is yours"
        )
        say(f"setup: {problem}. {cure}, or put the environment elsewhere with --env PATH.")
        return 1
    except KeyboardInterrupt:
        say("setup: interrupted. The same command goes on from where it stopped.")
        return 130
    return 0 if command == "none" else run_command(environment, command, rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
