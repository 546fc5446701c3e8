#!/usr/bin/env python3
"""Would an install on Colab replace anything that is already loaded there? A resolver answers it, far from Colab.

    python tools/check_colab_install.py                     against the list kept in tests/colab-packages.txt
    python tools/check_colab_install.py --latest            against what Colab publishes today: a job for every night
    python tools/check_colab_install.py "numpy>=2.2"        would this go in as well?

What the set-up cell installs is resolved for Colab's Python and system, with every version of the list as a constraint,
as the cell itself does with the live runtime's versions: so what fits only by replacing something is refused. torch and
what belongs to it come from another index there; they count as installed and are not looked into.

Exit code: 0 nothing is replaced, 1 something would be, 3 nobody can tell (no uv, or no package index answers).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.error
import urllib.request
import venv
from dataclasses import dataclass, field
from pathlib import Path

from installation import plain
from packaging.requirements import Requirement
from packaging.version import Version
from setup_environment import COLAB_EXTRAS

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "colab-packages.txt"
LATEST = "https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.gpu.txt"
PLATFORM = "x86_64-manylinux_2_28"
USUAL_PYTHON = "3.13"  # of a list that does not say
LIST_BYTES = 1_000_000
FROM_ELSEWHERE = re.compile(r"torch|nvidia|cuda|triton$|pytorch-triton")
BUILT_THERE = ("pyworld",)  # no wheel for 3.13; Colab has a compiler, and it takes half a minute
CHANGE = re.compile(r"^ ([+-]) ([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


class NoAnswer(Exception):
    """Nobody can tell: there is no resolver, or no package index answers."""


@dataclass(frozen=True)
class Runtime:
    """What is installed there: plain name -> version, and its Python."""

    versions: dict[str, str]
    python: str = USUAL_PYTHON


@dataclass(frozen=True)
class Outcome:
    """What an install would do there. refused: the resolver's words, when it only goes by replacing something."""

    new: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    refused: str = ""

    @property
    def fits(self) -> bool:
        """Whether everything that is there stays."""
        return not self.replaced and not self.refused

    def __str__(self) -> str:
        if self.refused:
            return f"It goes in only by replacing something:\n{self.refused}"
        rows = [f"new       {name} {version}" for name, version in self.new.items()]
        rows += [f"REPLACED  {name}, by {version}" for name, version in self.replaced.items()]
        return "\n".join([*rows, f"{len(self.new)} new, {len(self.replaced)} replaced"])


def read_runtime(text: str) -> Runtime:
    """`name==version` lines, or pip's `name @ address` of a wheel; the first comment may say the Python."""
    versions = {}
    for line in text.splitlines():
        name, _, version = line.strip().partition("==")
        wheel = re.match(r"([A-Za-z0-9._-]+) @ \S*/[^/-]+-([^/-]+)-[^/]*\.whl", line)
        if wheel:
            name, version = wheel.groups()
        if version and re.fullmatch(r"[A-Za-z0-9._-]+", name):
            versions[plain(name)] = str(Version(version))
    python = re.search(r"^#.*Python (3\.\d+)", text, re.MULTILINE)
    return Runtime(versions, python.group(1) if python else USUAL_PYTHON)


def wanted_there() -> list[str]:
    """The requirements of what the set-up cell installs: the project's own and those of the extras for Colab."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][name] for name in COLAB_EXTRAS.split(",")]
    return [*project["dependencies"], *(line for lines in extras for line in lines)]


def floor_problems(requirements: list[str], runtime: Runtime) -> list[str]:
    """What is wrong with the requirements themselves: bounds above, and floors above what is there. Asks no index."""
    problems = []
    for requirement in map(Requirement, requirements):
        there = runtime.versions.get(plain(requirement.name))
        if any(bound.operator not in (">=", ">", "!=") for bound in requirement.specifier):
            problems.append(f"{requirement} has an upper bound, which a moving runtime will pass")
        elif there and not requirement.specifier.contains(there, prereleases=True):
            problems.append(f"{requirement} is above the {there} that is there")
    return problems


def resolve(requirements: list[str], runtime: Runtime) -> Outcome:
    """Let uv resolve the requirements as if in that runtime. Raises NoAnswer."""
    with tempfile.TemporaryDirectory(prefix="colab_") as folder:
        place = Path(folder)
        venv.create(place / "env", with_pip=False, symlinks=os.name != "nt")
        (site,) = {*(place / "env").glob("lib/python3*/site-packages"), *(place / "env").glob("Lib/site-packages")}
        for name, version in runtime.versions.items():
            if FROM_ELSEWHERE.match(name):
                seem_installed(site, name, version)
        constraints = place / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in runtime.versions.items()))
        code, output = run_uv(place, requirements, runtime.python)
    if code == 0:
        return judge(output, runtime)
    if "No solution found" in output:
        return Outcome(refused=output[output.index("No solution found") :].strip())
    raise NoAnswer(f"uv could not resolve (exit {code}): {output.strip()[-800:]}")


def run_uv(place: Path, requirements: list[str], python: str) -> tuple[int, str]:
    """Exit code and words of a dry install into `place/env` under `place/constraints.txt`. Raises NoAnswer."""
    command = [
        sys.executable, "-m", "uv", "--no-config", "pip", "install", "--dry-run", "--no-progress", "--color", "never",
        "--python", str(place / "env"), "--python-version", python, "--python-platform", PLATFORM,
        "--only-binary", ":all:", *(f"--no-binary={name}" for name in BUILT_THERE),
        "--constraints", str(place / "constraints.txt"), *requirements,
    ]  # fmt: skip
    index = os.environ.get("PIP_INDEX_URL")
    environment = {**os.environ, **({"UV_DEFAULT_INDEX": index} if index else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "No module named uv" in done.stderr:
        raise NoAnswer("uv is not installed; pip install uv")
    return done.returncode, done.stderr + done.stdout


def seem_installed(site: Path, name: str, version: str) -> None:
    """Leave in a site-packages folder what tells installers that a package is there; it needs nothing."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    (folder / "RECORD").write_text("", encoding="utf-8")


def judge(output: str, runtime: Runtime) -> Outcome:
    """uv's ` + name==version` and ` - name==version` lines against what is there."""
    new, replaced = {}, {}
    for sign, name, version in CHANGE.findall(output):
        there = runtime.versions.get(plain(name))
        if there is None:
            new[plain(name)] = version
        elif sign == "-" or Version(version) != Version(there):
            replaced[plain(name)] = version if sign == "+" else "nothing"
    return Outcome(new, replaced)


def latest_list() -> str:
    """What Colab publishes about its GPU runtime. Raises NoAnswer."""
    try:
        with urllib.request.urlopen(LATEST, timeout=30) as answer:  # noqa: S310 - a constant https address
            return answer.read(LIST_BYTES).decode("utf-8")
    except (OSError, ValueError) as problem:
        raise NoAnswer(f"{LATEST} does not answer: {problem}") from problem


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("more", nargs="*", metavar="REQUIREMENT", help="something to install as well")
    parser.add_argument("--packages", type=Path, default=RECORDED, metavar="FILE", help="another list")
    parser.add_argument("--latest", action="store_true", help="the list Colab publishes today")
    parser.add_argument("--python", metavar="3.N", help="its Python, where the list does not say")
    options = parser.parse_args(arguments)
    requirements = [*wanted_there(), *options.more]
    try:
        runtime = read_runtime(latest_list() if options.latest else options.packages.read_text(encoding="utf-8"))
        runtime = Runtime(runtime.versions, options.python or runtime.python)
        problems = floor_problems(requirements, runtime)
        outcome = resolve(requirements, runtime)
    except NoAnswer as problem:
        print(problem, file=sys.stderr)
        return 3
    print("\n".join([f"Python {runtime.python}, {len(runtime.versions)} packages there", *problems, str(outcome)]))
    return 0 if outcome.fits and not problems else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
