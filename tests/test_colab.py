"""What the Colab notebook installs goes into Colab's runtime without replacing anything; and the check can say no."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from asset_place import FILES, Place, entry
from asset_server import asset_server
from notebook_place import cells_of

from rvc_spark.errors import AssetError
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.widgets.downloads import show_downloads
from rvc_spark.widgets.machine import survey_machine
from rvc_spark.widgets.progress import ProgressLine

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "tests" / "colab-packages.txt"
NEVER_NEW = {"numpy", "torch", "torchaudio", "transformers", "librosa", "ipython", "ipywidgets", "protobuf", "grpcio"}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/check_colab_install.py."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import check_colab_install

    return check_colab_install


@pytest.fixture
def runtime(check):
    return check.read_runtime(RECORDED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answers() -> dict:
    """Outcomes and refusals to answer, by requirement: each is resolved once, and a dead index is asked once."""
    return {}


def resolved(check, runtime, answers: dict, requirement: str = ""):
    """The outcome for what is installed and a requirement more; skips where nobody can tell."""
    if "nobody" in answers:
        pytest.skip(answers["nobody"])
    if requirement not in answers:
        more = [requirement] if requirement else []
        try:
            answers[requirement] = check.resolve([*check.wanted_there(), *more], runtime)
        except check.NoAnswer as problem:
            answers["nobody"] = str(problem)
            pytest.skip(answers["nobody"])
    return answers[requirement]


# ------------------------------------------------------------------------------------------------ without an index


def test_the_recorded_list_is_read_whole(runtime) -> None:
    lines = [line for line in RECORDED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert runtime.python == "3.13" and len(runtime.versions) == len(lines) > 600
    known = {"numpy": "2.1.3", "ipywidgets": "7.7.1", "ipython": "7.34.0", "torch": "2.11.0", "protobuf": "5.29.6"}
    assert known.items() <= runtime.versions.items()
    assert "faiss-cpu" not in runtime.versions and "papermill" not in runtime.versions


def test_lists_of_other_shapes_are_read(check) -> None:
    wheel = "https://x.org/a/en_core_web-3.8.0-py3-none-any.whl#sha256=1"
    text = f"Torch_Audio==2.9.0+cu128\nen-core-web @ {wheel}\n-e git+x\n"
    assert check.read_runtime(text).versions == {"torch-audio": "2.9.0+cu128", "en-core-web": "3.8.0"}
    assert check.read_runtime("# Python 3.14\na==1").python == "3.14"


def test_the_floors_are_at_or_below_what_colab_has_and_nothing_is_bounded_above(check, runtime) -> None:
    wanted = check.wanted_there()
    assert {"torch", "numpy", "ipywidgets", "torchcrepe"} <= {re.split(r"[<>=\[]", line)[0] for line in wanted}
    assert check.floor_problems(wanted, runtime) == []


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("numpy>=2.2", "above the 2.1.3"), ("ipywidgets>=8", "above the 7.7.1"), ("transformers<5", "upper bound"),
        ("numpy==2.1.3", "upper bound"), ("av~=13.0", "upper bound"),
    ],
)  # fmt: skip
def test_a_bad_floor_or_bound_is_named(check, runtime, requirement: str, words: str) -> None:
    (problem,) = check.floor_problems([*check.wanted_there(), requirement], runtime)
    assert words in problem and problem.startswith(requirement[:5])


def test_changes_are_told_from_additions(check, runtime) -> None:
    said = "Would install\n + faiss-cpu==1.9\n + numpy==2.1.3\n - scipy==1.16.3\n + Rich==14.0\n ~ x==1\n"
    outcome = check.judge(said, runtime)
    assert outcome.new == {"faiss-cpu": "1.9"} and outcome.replaced == {"scipy": "nothing", "rich": "14.0"}
    assert not outcome.fits and "REPLACED  rich, by 14.0" in str(outcome)


def test_the_set_up_keeps_every_package_of_a_colab_runtime(check, runtime, tmp_path) -> None:
    import installation
    from environments import Environment

    lines = installation.constraint_lines(Environment(tmp_path, "Colab", "", False), dict(runtime.versions))
    assert {f"{name}=={version}" for name, version in runtime.versions.items()} <= set(lines)


def test_without_an_index_or_a_resolver_nobody_can_tell(check, runtime, monkeypatch, capsys, tmp_path) -> None:
    for name, value in {"UV_HTTP_RETRIES": "0", "UV_NO_CACHE": "1", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(check.NoAnswer):
        check.resolve(["faiss-cpu"], runtime)
    assert check.main([]) == 3 and capsys.readouterr().err.strip()
    monkeypatch.setattr(check.subprocess, "run", lambda command, **_: bare_python(command, tmp_path))
    with pytest.raises(check.NoAnswer, match="uv is not installed"):
        check.resolve(["faiss-cpu"], runtime)


def bare_python(command: list[str], folder: Path):
    """What a Python without uv answers."""
    return subprocess.CompletedProcess(command, 1, "", f"{sys.executable}: No module named uv")


# --------------------------------------------------------------------------------------------------- with an index


def test_nothing_of_colab_is_replaced(check, runtime, answers) -> None:
    outcome = resolved(check, runtime, answers)
    assert outcome.fits, str(outcome)
    assert {"faiss-cpu", "av", "espeakng-loader"} <= set(outcome.new)
    assert not set(outcome.new) & (NEVER_NEW | {"anywidget"}) and len(outcome.new) < 25, str(outcome)


@pytest.mark.parametrize("requirement", ["numpy>=2.2", "ipywidgets>=8", "transformers<5", "protobuf>=6.30"])
def test_what_would_replace_something_is_refused(check, runtime, answers, requirement: str) -> None:
    outcome = resolved(check, runtime, answers, requirement)
    assert not outcome.fits and re.split("[<>]", requirement)[0] in outcome.refused


def test_the_command_says_what_comes_and_what_would_break(check, runtime, answers, capsys) -> None:
    resolved(check, runtime, answers)
    assert check.main([]) == 0
    assert re.search(r"new +faiss-cpu", capsys.readouterr().out)
    assert check.main(["ipython>=8"]) == 1
    assert "ipython" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- what its cells show


@pytest.fixture
def store(tmp_path: Path):
    """Two files in a group and one under a licence, on a server of this machine."""
    with asset_server() as server:
        for name, content in FILES.items():
            server.add(name, content)
        place = Place(tmp_path, server)
        agreed = {"licence": "CC-BY-NC-SA-4.0", "accept": True, "groups": ["shy"]}
        entries = [entry(server, "file-0", FILES["file-0"]), entry(server, "file-1", FILES["file-1"], bytes=None)]
        place.write([*entries, entry(server, "file-2", FILES["file-2"], **agreed)])
        yield place.store()


def test_downloads_count_along_and_end_in_a_table(store, monkeypatch) -> None:
    said: list[tuple[float, str]] = []
    monkeypatch.setattr(ProgressLine, "__call__", lambda self, step: said.append((step.fraction, step.message)))
    table = show_downloads(["all"], store=store)
    assert [(row[0], row[2]) for row in table.rows] == [("file-0", "MIT"), ("file-1", "MIT")]
    assert str(store.folder.root) in table.caption and store.asset_path("file-1").is_file()
    assert said[-1][0] == 1.0 and all(0 <= fraction <= 1 for fraction, _ in said) and "MB: file-" in said[-1][1]


def test_a_licence_is_agreed_to_by_name_or_nothing_comes(store) -> None:
    with pytest.raises(AssetError, match="CC-BY-NC-SA-4.0"):
        show_downloads(["shy"], store=store)
    assert [status.state for status in store.status(groups=["shy"])] == ["missing"]
    assert show_downloads(["shy"], accept=["CC-BY-NC-SA-4.0"], store=store).rows[0][2] == "CC-BY-NC-SA-4.0"


def test_nothing_asked_for_is_nothing_fetched(store) -> None:
    table = show_downloads([], store=store)
    assert "nothing was asked for" in repr(table)
    assert {status.state for status in store.status()} == {"missing"}


def test_the_machine_is_told_with_what_it_lacks(monkeypatch) -> None:
    assert survey_machine(RVCConfig(device="cpu")).gpu_bytes is None
    words = repr(survey_machine(RVCConfig(device="cpu")))
    assert "cpu (as set)" in words and "processor core" in words and "fp32 (exact)" in words
    import torch

    t4 = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=15_828_320_256)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: t4)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (t4.major, t4.minor))
    machine = survey_machine(RVCConfig(device="auto"))
    assert machine.device == Choice("cuda", "Tesla T4") and machine.language_model.value == "fp32"
    assert "14.7 GiB" in repr(machine) and "no bf16 here" in machine._repr_html_()


# --------------------------------------------------------------------------------------------- its set-up, carried out

RUN_CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell

checkout, *cells = sys.argv[1:]
sys.path[:] = [place for place in sys.path if place not in ("", checkout)]  # as on a machine without the project
shell = InteractiveShell.instance()
for cell in cells:
    done = shell.run_cell(cell)
    if not done.success:
        print("FAILED:", done.error_in_exec)
        sys.exit(1)
print("set up")
"""
STAND_IN = """
import pathlib, sys
pathlib.Path("called").write_text(" ".join(sys.argv[1:]))
print("pip says no" if {code} else "installed")
sys.exit({code})
"""


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)


def carry_out(folder: Path, *, code: int = 0, tag: str | None = None, before: str = "pass") -> str:
    """Run the notebook's first two code cells where the project is not installed, against a repository of ours whose
    set-up ends with `code`; everything that is printed."""
    setup, loaded = (cell.source for cell in cells_of(ROOT / "colab" / "triton_spark_rvc.ipynb", "code")[:2])
    address, wanted = re.search(r'REPOSITORY, TAG = "(.+?)", "(.+?)"', setup).groups()
    repository, work = folder / "repository", folder / "work"
    (repository / "tools").mkdir(parents=True)
    work.mkdir()
    (repository / "tools" / "setup_environment.py").write_text(STAND_IN.format(code=code))
    git(repository, "init", "-q")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "x")
    git(repository, "tag", tag or wanted)
    cells = [before, setup.replace(address, str(repository)), loaded]
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS, str(ROOT), *cells],
        cwd=work, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "IPYTHONDIR": str(work)},
    )  # fmt: skip
    return done.stdout + done.stderr


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@needs_git
def test_the_set_up_cell_fetches_its_tag_and_runs_the_set_up(tmp_path: Path) -> None:
    told = carry_out(tmp_path)
    assert "installed" in told and told.rstrip().endswith("set up"), told
    assert (tmp_path / "work" / "called").read_text() == "--env active none"
    assert (tmp_path / "work" / "rvc_spark_checkout" / "tools").is_dir()


@needs_git
@pytest.mark.parametrize(("how", "words"), [({"code": 1}, "pip says no"), ({"tag": "v9"}, "v0")])
def test_a_set_up_that_fails_stops_the_notebook(tmp_path: Path, how: dict, words: str) -> None:
    told = carry_out(tmp_path, **how)
    assert "FAILED: The set-up failed; its last lines above say why." in told and words in told, told


@needs_git
def test_a_package_that_changed_under_the_running_python_stops_the_notebook(tmp_path: Path) -> None:
    told = carry_out(tmp_path, before="import numpy; numpy.__version__ = '1.0'")
    assert "FAILED: ['numpy'] changed under this running Python: choose Runtime > Restart session" in told, told


def test_where_the_project_is_installed_the_set_up_cell_does_nothing(tmp_path: Path) -> None:
    setup = cells_of(ROOT / "colab" / "triton_spark_rvc.ipynb", "code")[0].source
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS, "nowhere", f"import sys; sys.path.append({str(ROOT)!r})", setup],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "profile")},
    )  # fmt: skip
    assert done.stdout.rstrip().endswith("set up"), done.stdout + done.stderr
    assert not (tmp_path / "rvc_spark_checkout").exists()
