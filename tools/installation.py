"""Make an environment and install the project into it with one pip call under constraints, and its bare packages next.

Rules: a fresh environment gets the pinned versions; one that holds packages keeps every one of them; torch is never
replaced. It does not choose the environment and does not check what works. Parses on Python 3.6 like its caller.
"""

import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from environments import ROOT, Environment, SetupProblem, ask, child_environment, python_version, say, write_stamp

CONSTRAINTS = ROOT / "tools" / "constraints.txt"
DISK_BYTES = 4 * 10**9  # 2.4 GB installed with a CPU torch (measured), pip's downloads and a margin
PIP_RETRIES = "2"  # pip waits longer before each; its own 5 make a dead network a matter of minutes
# PyTorch's own CPU builds, for package indexes whose Linux builds bring 3 GB of CUDA. Only when asked for: set-up talks
# to no other server than the package index on its own account.
CPU_WHEELS = tuple(f"https://download.pytorch.org/whl/cpu/{name}/" for name in ("torch", "torchaudio"))

# Packages of which one file is read and nothing is ever imported. Their own dependencies are not installed:
# Resemblyzer would bring webrtcvad, which has no wheel and needs a compiler, and the obsolete typing.
BARE_PACKAGES = ("resemblyzer",)

# How pip's own words map to a sentence: (pattern, what is wrong, what to do).
PIP_FAILURES = (
    (
        r"No space left on device|Errno 28",
        "The disk is full",
        "Free 4 GB, or set TMPDIR to a roomier disk, then try again.",
    ),
    (
        r"NewConnectionError|Temporary failure in name resolution|Network is unreachable|ProxyError|ConnectTimeoutError"
        r"|ReadTimeoutError|Connection (?:refused|reset|aborted)|NameResolutionError|CERTIFICATE_VERIFY_FAILED",
        "No package index answered",
        "Check the network or the proxy; behind a mirror set PIP_INDEX_URL. Then run the same command again.",
    ),
    (r"externally-managed-environment", "This Python belongs to the system", "Use --env new to make .venv instead."),
    (r"Permission denied|Errno 13", "A folder is not writable", "Use --env new, or an environment that is yours."),
    (
        r"ResolutionImpossible|conflicting dependencies",
        "What is already installed there does not go together with what is needed",
        "Nothing was replaced. Use --env new to make .venv in the checkout.",
    ),
    (
        r"No matching distribution found",
        "A package has no build for this Python and system",
        "Python 3.11 to 3.13 on Linux, macOS or Windows are known to have all of them; try one with --env new.",
    ),
)

VERSIONS_SCRIPT = """
import importlib.metadata as m, json
print(json.dumps({d.metadata["Name"]: d.version for d in m.distributions() if d.metadata["Name"] and d.version}))
"""


def make_environment(environment: Environment) -> None:
    """Make the folder and its interpreter, replacing a half-made one of ours. Raises SetupProblem."""
    prefix = environment.prefix
    if python_version(prefix) is not None:
        return
    for module in ("venv", "ensurepip"):
        without_pip = module == "ensurepip" and importlib.util.find_spec("pip") is not None
        if importlib.util.find_spec(module) is None and not without_pip:
            raise SetupProblem(
                f"This Python has no module {module}, so it cannot make an environment. On Debian or Ubuntu: "
                f"apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv; elsewhere install Python "
                "from python.org."
            )
    if prefix.exists() and any(prefix.iterdir()):
        say(f"{prefix} is half made, or its Python is gone: making it anew.")
        remove_environment(environment)
    need_room(prefix.parent)
    say("Making {} (Python {}.{}).".format(prefix, *sys.version_info[:2]))
    prefix.mkdir(parents=True, exist_ok=True)
    write_stamp(prefix, {"state": "begun", "made_here": True})
    command = [sys.executable, "-m", "venv", str(prefix)]
    if importlib.util.find_spec("ensurepip") is None:
        command.insert(3, "--without-pip")  # this Python's own pip then installs into it, by `pip --python`
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode or python_version(prefix) is None:
        raise pip_problem(done.stdout.decode("utf-8", "replace"), "python -m venv")


def need_room(folder: Path) -> None:
    """Raise SetupProblem when the disk cannot hold an environment."""
    free = shutil.disk_usage(str(folder)).free
    if free < DISK_BYTES:
        raise SetupProblem(
            f"{folder} has {free / 1e9:.1f} GB free; an environment needs {DISK_BYTES / 1e9:.1f} GB. "
            "Free some space, or put it elsewhere with --env PATH."
        )


def installed_versions(environment: Environment) -> "dict":
    """distribution name, as indexes compare it -> version, of everything in the environment."""
    return {plain(name): version for name, version in ask(environment.python, VERSIONS_SCRIPT).items()}


def remove_environment(environment: Environment) -> None:
    """Delete an environment this script made. Raises SetupProblem when this very Python runs from it."""
    if not environment.prefix.exists():
        return
    if Path(sys.prefix).resolve() == environment.prefix.resolve():
        raise SetupProblem(
            f"This Python runs from {environment.prefix} and cannot remove it. "
            "Leave it with `deactivate`, then try again."
        )
    say(f"Removing {environment.prefix}.")
    shutil.rmtree(str(environment.prefix))


def fingerprint(environment: Environment, extras: str) -> str:
    """Changes when another install is due: the project's metadata, the pins, the place or the interpreter changed."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), CONSTRAINTS.read_bytes(), extras.encode(), str(ROOT).encode()]
    parts.append(" ".join(BARE_PACKAGES).encode())
    parts.append(repr(python_version(environment.prefix)).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def pinned_versions() -> "dict":
    """name -> constraint line of tools/constraints.txt."""
    lines = [line.strip() for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines()]
    return {plain(re.split(r"[<>=!~]", line)[0]): line for line in lines if line and not line.startswith("#")}


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraint_lines(environment: Environment, installed: "dict") -> "list":
    """What pip may choose. torch is kept whatever it is; an environment with packages of its own keeps them all."""
    pins = pinned_versions()
    live = {name: f"{name}=={version}" for name, version in installed.items()}
    live.pop("rvc-spark", None)
    if environment.ours or not set(live) - {"pip", "setuptools", "wheel"}:
        kept = {name: live[name] for name in ("torch", "torchaudio") if name in live}
        return sorted(dict(pins, **kept).values())
    needed = {name: pins[name] for name in ("torch", "torchaudio", "setuptools")}
    return sorted(dict(needed, **live).values())


def pip_command(environment: Environment) -> "list":
    """pip for the environment: its own, this Python's aimed at it, or one put there from the standard library."""
    own = [environment.python, "-m", "pip"]
    aimed = [sys.executable, "-m", "pip", "--python", environment.python]
    for command in (own, aimed):
        done = subprocess.run(
            command + ["--version"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            check=False,
        )
        if done.returncode == 0:
            return command
    say(f"There is no pip in {environment.prefix}: putting one there.")
    done = subprocess.run(
        [environment.python, "-m", "ensurepip"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=child_environment(),
        check=False,
    )
    if done.returncode:
        raise SetupProblem(f"{own[0]} has no pip and no way to get one. Install pip there, then try again.")
    return own


def install(environment: Environment, extras: str, cpu_wheels: bool = False) -> None:
    """The project, editable, with its extras under constraints; then what comes without its dependencies.

    Raises SetupProblem with pip's reason.
    """
    if not environment.ours:
        say(f"Installing into {environment.prefix}; nothing that is there is replaced.")
    lines = constraint_lines(environment, installed_versions(environment))
    constraints = environment.prefix / "rvc_spark_constraints.txt"
    constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Bytecode is made when a module is first imported: a third of the install's time saved, as most never are.
    command = [*pip_command(environment), "install", "--no-compile", "--progress-bar", "off"]
    for page in CPU_WHEELS if cpu_wheels else ():
        command += ["--find-links", page]
    command += ["-c", str(constraints)]
    log = environment.prefix / "rvc_spark_setup.log"
    say(f"Installing rvc_spark[{extras}] (the first time takes a minute or more; log: {log}).")
    with open(str(log), "w", encoding="utf-8") as record:
        code = run_pip([*command, "-e", f".[{extras}]"], record)
        if not code:
            code = run_pip([*command, "--no-deps", *BARE_PACKAGES], record)
    if code:
        raise pip_problem(log.read_text(encoding="utf-8"), f"pip, whose whole output is in {log},")


def run_pip(command: "list", record: "io.TextIOBase") -> int:
    """Run pip, keep its output in an open log, show what a person waits for; pip's exit code."""
    patience = dict({"PIP_RETRIES": PIP_RETRIES}, **child_environment())  # a variable also reaches pip's build step
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(ROOT), env=patience)
    try:
        for raw in running.stdout:
            line = raw.decode("utf-8", "replace")
            record.write(line)
            show_pip_line(line)
        return running.wait()
    finally:
        if running.poll() is None:  # this loop was interrupted, or the log's disk is full
            running.terminate()
            running.wait()


def show_pip_line(line: str) -> None:
    """Pass on the few lines of pip a waiting person wants: what is fetched, and that the unpacking began."""
    size = re.match(r"\s*Downloading (\S+?)-\d\S* \(([\d.]+) (MB|GB)\)", line)
    if size and (size.group(3) == "GB" or float(size.group(2)) >= 20):
        say(f"  fetching {size.group(1)} ({size.group(2)} {size.group(3)})")
    elif line.startswith("Installing collected packages"):
        say("  unpacking {} packages".format(line.count(",") + 1))


def pip_problem(output: str, who: str) -> SetupProblem:
    """pip's output as one sentence that says what is wrong and what to do."""
    for pattern, problem, next_step in PIP_FAILURES:
        if re.search(pattern, output):
            return SetupProblem(f"{problem} ({first_error(output)}). {next_step}")
    return SetupProblem(f"{who} failed: {first_error(output)}. Mend that, then run the same command again.")


def first_error(output: str) -> str:
    """The line of pip that names the error, shortened; of a failed build, the last line before its end."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    built = [before for before, line in zip(lines, lines[1:], strict=False) if line == "[end of output]"]
    named = built or [line for line in lines if re.match(r"(ERROR|error|×)", line)] or lines[-1:] or ["no output"]
    return named[0][:300].rstrip(". ")
