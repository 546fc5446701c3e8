"""The notebooks are small, clean and true: a lint, nbval over each, a server started from one, a panel in a kernel.

Their stored outputs are looked at in test_stored_outputs.py; voila shows them in test_voila.py.
"""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from notebook_place import (
    CELL_SECONDS,
    NOTEBOOK_SECONDS,
    NOTEBOOKS,
    ROOT,
    cells_of,
    check_stored,
    free_port,
    house_of_its_own,
    nbformat,
    outputs_by_cell,
    quick_first,
    run_with_papermill,
    surroundings,
    told_by,
)

from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.tts.spark_checkpoint import GET
from rvc_spark.tts.triton_platform import check_platform, choose_interpreter
from rvc_spark.tts.triton_ports import holder_of
from rvc_spark.tts.triton_runtime import ensure_runtime
from rvc_spark.tts.triton_state import read_state

COLAB = ROOT / "colab" / "triton_spark_rvc.ipynb"
MAX_CODE_CELLS = 12
MAX_CELL_LINES = 14
MAX_PARAMETERS = 8
MAX_BYTES = 60_000
SHELL_LINE = re.compile(r"^\s*(!|%%?(sh|bash|system|pip|conda|cd)\b)", re.MULTILINE)


def tags_of(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def python_of(cell) -> ast.Module:
    """The cell as Python: shell and magic lines become `pass` at their indent."""
    return ast.parse(re.sub(r"^(\s*)[!%].*$", r"\1pass", cell.source, flags=re.MULTILINE))


def test_there_is_a_first_notebook() -> None:
    assert ROOT / "notebooks" / "start.ipynb" in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
class TestLint:
    def test_it_is_valid_and_holds_no_results(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = cells_of(path, "code")
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
        assert "widgets" not in notebook.metadata and not any("attachments" in cell for cell in notebook.cells)
        assert path.stat().st_size < MAX_BYTES
        assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.colab.private_outputs is True

    def test_it_is_short_and_explained(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        kinds = [cell.cell_type for cell in notebook.cells]
        assert 0 < kinds.count("code") <= MAX_CODE_CELLS
        assert kinds[0] == "markdown" and ("code", "code") not in zip(kinds, kinds[1:], strict=False)
        assert all(cell.source.count("\n") < MAX_CELL_LINES for cell in cells_of(path, "code"))
        assert all(len(cell.source) > 40 for cell in cells_of(path, "markdown"))

    def test_its_cells_call_and_promise_but_define_nothing(self, path: Path) -> None:
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.Try, ast.While)
        trees = [python_of(cell) for cell in cells_of(path, "code")]
        assert not [type(node).__name__ for tree in trees for node in ast.walk(tree) if isinstance(node, definitions)]
        assert sum(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree)) >= 5

    def test_only_the_setup_cell_talks_to_the_shell(self, path: Path) -> None:
        shells = [index for index, cell in enumerate(cells_of(path, "code")) if SHELL_LINE.search(cell.source)]
        assert shells in ([], [0])

    def test_one_parameters_cell_serves_papermill_and_colab(self, path: Path) -> None:
        (cell,) = [cell for cell in cells_of(path, "code") if "parameters" in tags_of(cell)]
        assert cell.metadata.cellView == "form"
        lines = cell.source.splitlines()
        assert 0 < len(lines) <= MAX_PARAMETERS
        for line in lines:
            (statement,) = ast.parse(line).body
            assert isinstance(statement, ast.Assign) and re.search(r"  # @param( |$)", line), line
            ast.literal_eval(statement.value)


    def test_its_cells_can_be_named_and_know_nothing_of_a_machine(self, path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        names = [cell.id for cell in notebook.cells]
        assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z][a-z0-9-]*", name) for name in names)
        for cell in cells_of(path, "code"):
            assert not re.search(r"[\"'](/(?!/)|~|[A-Z]:\\)", cell.source), f"{cell.id} names a place of one machine"

    def test_it_never_waits_for_a_person_nor_changes_the_process(self, path: Path) -> None:
        trees = [python_of(cell) for cell in cells_of(path, "code")]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert not called & {"input", "getpass", "time.sleep", "sleep", "clear_output", "os.chdir", "exec", "eval"}
        changed = {ast.unparse(target) for node in nodes if isinstance(node, ast.Assign) for target in node.targets}
        assert not [name for name in changed if name.startswith(("os.environ", "sys.path"))]
        imported = [alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
        assert "*" not in imported and not any(isinstance(node, ast.AsyncFor | ast.AsyncWith) for node in nodes)

    def test_the_readme_leads_to_it(self, path: Path) -> None:
        assert path.relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text(encoding="utf-8")


class TestColab:
    """What only the notebook for Colab must be."""

    def test_its_badge_and_its_set_up_name_the_same_version(self) -> None:
        badge = cells_of(COLAB, "markdown")[0].source.splitlines()[0]
        address = re.fullmatch(
            r"\[!\[.+?\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
            r"\(https://colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/([^/]+)/(.+?)\)", badge,
        )  # fmt: skip
        assert address, badge
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        setup = cells_of(COLAB, "code")[0].source
        assert f'"https://github.com/{address[1]}", "{address[2]}"' in setup
        assert address[2] == f"v{project['version']}" and address[3] == COLAB.relative_to(ROOT).as_posix()

    def test_it_asks_for_a_gpu_and_keeps_no_outputs(self) -> None:
        metadata = nbformat.read(COLAB, as_version=4).metadata
        assert metadata.accelerator == "GPU" and metadata.colab.gpuType == "T4"
        assert metadata.colab.private_outputs is True and metadata.colab.name == COLAB.name

    def test_its_set_up_is_one_cell_that_hides_nothing_and_replaces_nothing(self) -> None:
        first, *others = cells_of(COLAB, "code")
        assert SHELL_LINE.search(first.source) and "assert _exit_code == 0" in first.source
        assert "setup_environment.py" in first.source and "pip" not in first.source
        told = "\n".join(cell.source for cell in (first, *others))
        assert not re.search(r"capture|/dev/null|\|\| *true|--upgrade|-U\b|--force|==\d", told)

    def test_the_notebook_is_the_only_interface(self) -> None:
        told = "\n".join(cell.source for cell in cells_of(COLAB, "code")).lower()
        served = ("share=", "ngrok", "cloudflare", "tunnel", "gradio", "launch(", "serve_kernel_port", "rot13", "b64")
        assert [word for word in served if word in told] == []

    def test_it_speaks_of_consent_licences_and_what_colab_allows(self) -> None:
        words = "\n".join(cell.source for cell in cells_of(COLAB, "markdown"))
        for told in ("consent", "synthetic", "CC BY-NC-SA 4.0", "no commercial use", "MIT", "deepfakes", "free", "T4"):
            assert told in words, told
        (parameters,) = [cell.source for cell in cells_of(COLAB, "code") if "parameters" in tags_of(cell)]
        assert "agree_to_spark_tts_licence = False" in parameters and "community_voices = False" in parameters


@pytest.mark.parametrize("path", quick_first(NOTEBOOKS, "start.ipynb"), ids=lambda path: path.name)
def test_nbval_runs_it(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("nbval")
    command = [
        sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-q", "-p", "no:cacheprovider", str(path),
    ]  # fmt: skip
    around = {**os.environ, **surroundings(house_of_its_own(tmp_path / "home"))}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=around, timeout=NOTEBOOK_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert f"{len(cells_of(path, 'code'))} passed" in done.stdout


def test_the_spark_notebook_says_how_to_get_the_weights_and_what_they_ask_for() -> None:
    words = "\n".join(cell.source for cell in cells_of(ROOT / "notebooks" / "spark.ipynb", "markdown"))
    assert GET in words and "CC BY-NC-SA 4.0" in words and "no commercial use" in words
    assert words.index("CC BY-NC-SA 4.0") < words.index(GET) and words.index("agreed") < words.index(GET)


def test_the_spark_notebook_starts_a_server_and_ends_it(tmp_path: Path, spark_folder, monkeypatch) -> None:
    """A real tritonserver with the project's model repository over the tiny checkpoint."""
    try:
        check_platform()
        choose_interpreter()
    except TritonBootError as error:
        pytest.skip(error.problem)
    home, port = house_of_its_own(tmp_path / "home"), free_port()
    (home / "assets" / "triton").mkdir()
    (home / "assets" / "triton" / "runtime").symlink_to(ensure_runtime(RVCConfig().triton_dir).folder)
    around = {**surroundings(home), "RVC_SPARK_SPARK": spark_folder, "TRITON_SERVER_ADDR": "127.0.0.1"}
    for name, value in {**around, "TRITON_SERVER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    given = {"text": "A short sentence, said by a server.", "start_server": True, "seed": 3}
    done = run_with_papermill(ROOT / "notebooks" / "spark.ipynb", tmp_path / "done.ipynb", given)
    check_stored(done)
    told = told_by(done)
    assert re.search(rf"127\.0\.0\.1:{port} \| embedded \|", told) and f"ready on 127.0.0.1:{port}" in told
    assert "triton speaks: a server answers at" in told and "nothing of this notebook is left running" in told
    compared = outputs_by_cell(done)["compare"]["text/html"]
    assert compared.count("<audio") == 3 and "failed" not in compared
    assert holder_of(port) is None and read_state(home / "assets" / "triton", port) is None


async def execute_awake(client) -> None:
    """Execute, looking at the reply socket twice a second.

    nbclient answers a kernel's Output widgets on the very socket where it waits for the cell's reply. When both happen
    together the wake-up for the reply is lost, and the reply lies there until the cell's time is over.
    """
    zmq = pytest.importorskip("zmq")

    async def look() -> None:
        while True:
            await asyncio.sleep(0.5)
            if client.kc is not None:
                client.kc.shell_channel.socket.get(zmq.EVENTS)

    looking = asyncio.ensure_future(look())
    try:
        await client.async_execute()
    finally:
        looking.cancel()


def test_the_panel_works_in_a_kernel(tmp_path: Path) -> None:
    """A click puts players and a picture into the panel's output, and the chosen settings reach the conversion."""
    nbclient = pytest.importorskip("nbclient")
    sources = [
        "from rvc_spark.widgets import VoicePanel\n"
        "panel = VoicePanel(text='Good morning.', settings={'key': 9.0, 'index_rate': 0.25, 'f0_method': 'pm'})\npanel",
        "panel.speak_button.click()\nprint(panel.status.value)",
        "print(panel.conversion.settings.key, panel.conversion.settings.index_rate)\n"
        "print([kind for output in panel.output.outputs for kind in output['data']])",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    client = nbclient.NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(tmp_path)}})
    asyncio.run(execute_awake(client))
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.outputs)
    assert "of sound in" in text and "9.0 0.25" in text, text
    assert text.count("'text/html'") == 2 and "'image/png'" in text
