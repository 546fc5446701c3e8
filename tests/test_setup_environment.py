"""The decisions of the set-up, without a network: which environment, which versions, what it says when things fail."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
SETUP = TOOLS / "setup_environment.py"
SHADOWS = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "COLAB_RELEASE_TAG", "POETRY_ACTIVE", "PIPENV_ACTIVE")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """environments, installation and setup_environment, as if nothing were active."""
    monkeypatch.syspath_prepend(str(TOOLS))
    for name in SHADOWS:
        monkeypatch.delenv(name, raising=False)
    import environments
    import installation
    import setup_environment

    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    return environments, installation, setup_environment


@pytest.fixture
def absent_modules(tools, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Modules this Python seems to lack, as on a Debian without python3-venv; and a disk with room."""
    _, installation, _ = tools
    absent = {"ensurepip"}
    real = installation.importlib.util.find_spec
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None if name in absent else real(name))
    monkeypatch.setattr(installation, "DISK_BYTES", 0)
    return absent


def bare_environment(folder: Path) -> Path:
    """A real environment without pip: made in a blink."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    return folder


def put_package(prefix: Path, name: str, files: dict[str, str], version: str = "1.0") -> None:
    """Install a package by hand: its files and the metadata pip would leave."""
    (site,) = prefix.glob("lib/python3*/site-packages")
    for path, text in {**files, f"{name}-{version}.dist-info/METADATA": f"Name: {name}\nVersion: {version}\n"}.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)


# ------------------------------------------------------------------------------------------------- old interpreters


@pytest.mark.parametrize(
    "path", [SETUP, TOOLS / "environments.py", TOOLS / "installation.py"], ids=lambda path: path.name
)
def test_an_old_python_can_read_the_scripts_far_enough_to_say_what_is_wrong(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    futures = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert futures == [], "3.6 does not know `annotations`"
    local = {"environments", "installation"}
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names) | local
    unions = [
        ast.unparse(node.annotation) for node in ast.walk(tree)
        if isinstance(node, ast.arg) and node.annotation and not isinstance(node.annotation, ast.Constant)
        and "[" in ast.unparse(node.annotation)
    ]  # fmt: skip
    assert unions == [], "annotations are evaluated: generics must be quoted"


def test_an_old_python_gets_a_sentence_and_the_command_to_use(tools, monkeypatch, capsys) -> None:
    *_, setup = tools
    monkeypatch.setattr(setup, "OLDEST_PYTHON", (9, 9))
    assert setup.main(["demo"]) == 1
    assert "rvc_spark needs 9.9 or newer" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- which environment


def test_without_an_active_environment_one_is_made_in_the_checkout(tools, monkeypatch, tmp_path) -> None:
    environments, *_ = tools
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    chosen = environments.choose_environment("auto")
    assert chosen.prefix == tmp_path / ".venv" and chosen.ours and chosen.reason == "no environment is active"
    with pytest.raises(environments.SetupProblem, match="--env new"):
        environments.choose_environment("active")


@pytest.mark.parametrize(
    ("trace", "variables", "kind"),
    [
        ("", {}, "venv"),
        ("pyvenv.cfg:uv = 0.9.1", {}, "uv"),
        ("", {"POETRY_ACTIVE": "1"}, "poetry"),
        (".project:/somewhere", {}, "pipenv"),
        ("conda-meta/history:", {}, "conda"),
    ],
)
def test_an_active_environment_is_recognised_and_used(tools, monkeypatch, tmp_path, trace, variables, kind) -> None:
    environments, *_ = tools
    prefix = bare_environment(tmp_path / "my env")
    if trace:
        name, text = trace.split(":", 1)
        (prefix / name).parent.mkdir(exist_ok=True)
        with (prefix / name).open("a") as file:
            file.write(text + "\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CONDA_PREFIX" if kind == "conda" else "VIRTUAL_ENV", str(prefix))
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "mine")
    chosen = environments.choose_environment("auto")
    assert (chosen.prefix, chosen.kind, chosen.ours) == (prefix, kind, False)
    assert environments.choose_environment("active") == chosen


def test_what_is_no_environment_is_not_taken_for_one(tools, monkeypatch, tmp_path, capsys) -> None:
    environments, *_ = tools
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "gone"))
    monkeypatch.setenv("CONDA_PREFIX", sys.base_prefix)
    monkeypatch.setenv("CONDA_DEFAULT_ENV", "base")
    assert environments.choose_environment("auto").prefix == tmp_path / ".venv"
    assert "no Python there" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    (tmp_path / "letter").write_text("dear")
    for name in ("photos", "letter"):
        with pytest.raises(environments.SetupProblem, match=name):
            environments.choose_environment(str(tmp_path / name))
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


def test_colab_is_recognised(tools, monkeypatch) -> None:
    environments, *_ = tools
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20261101")
    chosen = environments.choose_environment("auto")
    assert (chosen.kind, chosen.ours, chosen.python) == ("Colab", False, sys.executable)


# ------------------------------------------------------------------------------------------------- making it


def test_a_half_made_environment_is_made_anew_and_a_good_one_is_kept(tools, tmp_path, absent_modules, capsys) -> None:
    environments, installation, _ = tools
    prefix = bare_environment(tmp_path / "with space" / "env")
    for name in prefix.glob("bin/python*"):
        name.unlink()
        name.symlink_to(tmp_path / "uninstalled")
    chosen = environments.choose_environment(str(prefix))
    assert chosen.ours
    installation.make_environment(chosen)
    assert environments.python_version(prefix) == sys.version_info[:2] and environments.made_here(prefix)
    assert "making it anew" in capsys.readouterr().err
    (prefix / "kept").write_text("x")
    installation.make_environment(chosen)
    assert (prefix / "kept").exists()


def test_a_python_without_ensurepip_borrows_pip_or_says_what_to_install(tools, tmp_path, absent_modules) -> None:
    environments, installation, _ = tools
    chosen = environments.choose_environment(str(tmp_path / "env"))
    installation.make_environment(chosen)
    assert not list(tmp_path.glob("env/lib/python3*/site-packages/pip"))
    assert installation.pip_command(chosen)[:5] == [sys.executable, "-m", "pip", "--python", chosen.python]
    absent_modules.add("pip")
    with pytest.raises(environments.SetupProblem, match=r"apt install python3\.\d+-venv"):
        installation.make_environment(environments.choose_environment(str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_noticed_before_anything_is_made(tools, tmp_path, monkeypatch) -> None:
    environments, installation, _ = tools
    monkeypatch.setattr(installation, "DISK_BYTES", 10**18)
    with pytest.raises(environments.SetupProblem, match="GB free"):
        installation.make_environment(environments.choose_environment(str(tmp_path / "env")))
    assert list(tmp_path.iterdir()) == []


def test_only_what_was_made_here_is_removed(tools, tmp_path) -> None:
    environments, installation, _ = tools
    own = environments.Environment(Path(sys.prefix), "venv", "", True)
    with pytest.raises(environments.SetupProblem, match="deactivate"):
        installation.remove_environment(own)
    prefix = bare_environment(tmp_path / "theirs")
    assert not environments.choose_environment(str(prefix)).ours


def test_two_set_ups_take_turns_and_a_dead_one_lets_go(tools, tmp_path, capsys) -> None:
    environments, *_ = tools
    code = (
        "import sys, time; from pathlib import Path; import environments as e\n"
        "with e.only_one(e.Environment(Path(sys.argv[1]), 'venv', '', True)):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "env")], cwd=TOOLS, stdout=subprocess.PIPE, text=True
    )
    environment = environments.Environment(tmp_path / "env", "venv", "", True)
    try:
        assert holder.stdout.readline() == "held\n"
        environments.LOCK_PATIENCE_S = 0.0
        with pytest.raises(environments.SetupProblem, match="Another set-up"), environments.only_one(environment):
            pass
    finally:
        environments.LOCK_PATIENCE_S = 1800.0
        holder.kill()
        holder.wait()
    with environments.only_one(environment):
        pass


# ------------------------------------------------------------------------------------------------- which versions


def test_the_pins_cover_every_dependency_and_leave_torch_its_build(tools) -> None:
    _, installation, _ = tools
    pins = installation.pinned_versions()
    assert pins["torch"] == "torch==2.13.0" and pins["torchaudio"] == "torchaudio==2.11.0"
    assert pins["setuptools"] == "setuptools<81" and not any("+" in line for line in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, rows in project["optional-dependencies"].items() if name != "all" for line in rows]
    named = {installation.plain(re.match(r"[\w.-]+", line).group()) for line in project["dependencies"] + extras}
    assert named - set(pins) == set()


def test_nothing_installed_is_ever_replaced(tools, tmp_path) -> None:
    environments, installation, _ = tools
    theirs = environments.Environment(tmp_path, "venv", "", False)
    lines = installation.constraint_lines(theirs, {"numpy": "1.26.4", "torch": "2.11.0+cu128", "rvc-spark": "0.1.0"})
    assert "numpy==1.26.4" in lines and "torch==2.11.0+cu128" in lines and "torchaudio==2.11.0" in lines
    assert not any(line.startswith(("scipy", "rvc-spark")) for line in lines)
    ours = environments.Environment(tmp_path, "venv", "", True)
    lines = installation.constraint_lines(ours, {"torch": "2.13.0+cu130", "numpy": "1.26.4"})
    assert "torch==2.13.0+cu130" in lines and "numpy==1.26.4" not in lines
    empty = installation.constraint_lines(theirs, {"pip": "26", "setuptools": "80"})
    assert "torch==2.13.0" in empty and len(empty) > 100


def test_the_installed_versions_are_read_from_the_environment_itself(tools, tmp_path) -> None:
    environments, installation, _ = tools
    prefix = bare_environment(tmp_path / "env")
    put_package(prefix, "Odd_Name.Package", {}, "3.1")
    environment = environments.choose_environment(str(prefix))
    assert installation.installed_versions(environment) == {"odd-name-package": "3.1"}


# ------------------------------------------------------------------------------------------------- repairs and words


def test_a_cpu_torch_beside_a_cuda_torchaudio_is_mended_only_where_allowed(tools, tmp_path) -> None:
    environments, _, setup = tools
    prefix = bare_environment(tmp_path / "env")
    put_package(
        prefix, "torch", {"torch/__init__.py": "from torch import version\n", "torch/version.py": "cuda = None\n"}
    )
    broken = {
        f"torchaudio/lib/{name}": "not a library" for name in ("_torchaudio.abi3.so", "libtorchaudio.so", "other.so")
    }
    put_package(prefix, "torchaudio", {"torchaudio/__init__.py": "", **broken})
    environment = environments.choose_environment(str(prefix))
    (library,) = prefix.glob("lib/python3*/site-packages/torchaudio/lib")
    assert "--repair" in setup.mend_torchaudio(environment, allowed=False) and len(list(library.iterdir())) == 3
    assert "2 CUDA extensions removed" in setup.mend_torchaudio(environment, allowed=True)
    assert [path.name for path in library.iterdir()] == ["other.so"]
    assert setup.mend_torchaudio(environment, allowed=True) == ""


def test_a_cuda_torch_is_left_alone(tools, tmp_path) -> None:
    environments, _, setup = tools
    prefix = bare_environment(tmp_path / "env")
    put_package(
        prefix, "torch", {"torch/__init__.py": "from torch import version\n", "torch/version.py": "cuda = '13.0'\n"}
    )
    put_package(prefix, "torchaudio", {"torchaudio/__init__.py": "", "torchaudio/lib/_torchaudio.so": "not a library"})
    assert setup.mend_torchaudio(environments.choose_environment(str(prefix)), allowed=True) == ""
    assert list(prefix.glob("lib/python3*/site-packages/torchaudio/lib/*"))


def test_the_table_names_what_is_broken_and_stops_when_nothing_can_work(tools, tmp_path, monkeypatch, capsys) -> None:
    environments, _, setup = tools
    prefix = bare_environment(tmp_path / "env")
    put_package(prefix, "fine", {"fine.py": ""}, "2.0")
    put_package(prefix, "ill", {"ill.py": "raise OSError('libx.so is missing')"})
    environment = environments.choose_environment(str(prefix))
    monkeypatch.setattr(setup, "PARTS", (("good", "fine", True), ("extra", "ill", False)))
    assert setup.verify(environment, repair=False)["parts"] == {"fine": True, "ill": False}
    said = capsys.readouterr().err
    assert re.search(r"yes +good +fine 2.0", said) and re.search(r"no +extra +ill: OSError: libx.so is missing", said)
    monkeypatch.setattr(setup, "PARTS", (("needed", "ill absent", True),))
    with pytest.raises(environments.SetupProblem, match="libx.so.*--reinstall"):
        setup.verify(environment, repair=False)


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        (
            "WARNING: Retrying ... NewConnectionError('...')\nERROR: No matching distribution found for numpy",
            "No package index",
        ),
        ("ERROR: ResolutionImpossible: for help visit", "Nothing was replaced"),
        ("ERROR: No matching distribution found for faiss-cpu==1.15.1", "has no build for this Python"),
        ("error: externally-managed-environment", "--env new"),
        ("ERROR: Could not install: [Errno 13] Permission denied: '/usr/lib'", "not writable"),
        ("Traceback\nERROR: something unheard of", "something unheard of"),
        ("error: subprocess-exited-with-error\n  OSError: No README.md\n  [end of output]", "OSError: No README.md"),
        ("", "no output"),
    ],
)
def test_pip_failures_become_sentences(tools, output: str, sentence: str) -> None:
    _, installation, _ = tools
    assert sentence in str(installation.pip_problem(output, "pip"))


def test_pip_really_fails_with_those_words(tools, tmp_path, monkeypatch) -> None:
    """No index, for real: pip asks a port nobody listens at."""
    environments, installation, _ = tools
    environment = environments.Environment(bare_environment(tmp_path / "env"), "venv", "", True)
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "CONFIG_FILE": os.devnull, "RETRIES": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(environments.SetupProblem, match="No package index answered"):
        installation.install(environment, "all")
    assert "ERROR" in (environment.prefix / "rvc_spark_setup.log").read_text()


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "command", "rest"),
    [
        (["demo"], "demo", []),
        (["--env", "new", "test", "-k", "audio", "--env"], "test", ["-k", "audio", "--env"]),
        (["--", "convert", "in.wav", "--json"], "--", ["convert", "in.wav", "--json"]),
        (["--repair", "demo", "--help"], "demo", ["--help"]),
        ([], "none", []),
    ],
)
def test_the_command_and_its_arguments_are_told_apart(tools, arguments, command, rest) -> None:
    *_, setup = tools
    options, found, remaining = setup.parse(arguments)
    assert (found, remaining) == (command, rest) and options.env == ("new" if "new" in arguments else "auto")


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "Free 4 GB"), (errno.EACCES, "is yours")])
def test_trouble_with_the_disk_becomes_a_sentence(tools, monkeypatch, capsys, number: int, words: str) -> None:
    *_, setup = tools

    def fail(_wanted: str) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/env")

    monkeypatch.setattr(setup, "choose_environment", fail)
    assert setup.main(["demo"]) == 1
    said = capsys.readouterr().err
    assert words in said and "/somewhere/env" in said and "--env PATH" in said


def test_an_unknown_command_is_refused(tools, capsys) -> None:
    *_, setup = tools
    with pytest.raises(SystemExit) as stopped:
        setup.parse(["dmeo"])
    assert stopped.value.code == 2 and "demo, test, doctor" in capsys.readouterr().err


def test_a_ready_environment_is_not_installed_again_until_something_changes(tools, tmp_path, monkeypatch) -> None:
    environments, installation, setup = tools
    prefix = bare_environment(tmp_path / "env")
    put_package(prefix, "fine", {"fine.py": ""})
    environments.write_stamp(prefix, {"state": "begun", "made_here": True})
    calls: list[str] = []
    monkeypatch.setattr(setup, "install", lambda environment, extras, cpu_wheels: calls.append(extras))
    monkeypatch.setattr(setup, "PARTS", (("good", "fine", True),))
    environment = environments.choose_environment(str(prefix))
    setup.set_up(environment, reinstall=False, repair=False)
    setup.set_up(environment, reinstall=False, repair=False)
    assert calls == ["all"]
    noted = json.loads((prefix / environments.STAMP).read_text())
    assert noted["state"] == "ready" and noted["made_here"] is True and noted["installed"] == ["fine"]
    pins = tmp_path / "constraints.txt"
    pins.write_text("fine==2.0\n")
    monkeypatch.setattr(installation, "CONSTRAINTS", pins)
    setup.set_up(environment, reinstall=False, repair=False)
    assert calls == ["all", "all"]
    (metadata,) = prefix.glob("lib/python3*/site-packages/fine-1.0.dist-info/METADATA")
    metadata.unlink()
    setup.set_up(environment, reinstall=False, repair=False)
    assert calls == ["all"] * 3


def test_ci_runs_the_second_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "tools/setup_environment.py test" in script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
