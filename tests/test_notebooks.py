"""The notebooks are small, clean and true: a lint, nbval, papermill with other values, and the panel in a kernel."""

from __future__ import annotations

import ast
import asyncio
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvc_spark.audio import Audio, write_audio
from rvc_spark.errors import TritonBootError
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.tts.spark_checkpoint import GET
from rvc_spark.tts.triton_platform import check_platform, choose_interpreter
from rvc_spark.tts.triton_ports import holder_of
from rvc_spark.tts.triton_runtime import ensure_runtime
from rvc_spark.tts.triton_state import read_state

nbformat = pytest.importorskip("nbformat", reason="pip install 'rvc-spark[dev,lab]'")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "colab").glob("*.ipynb")])
LOCAL = [path for path in NOTEBOOKS if path.parent.name == "notebooks"]
MAX_CODE_CELLS = 12
MAX_CELL_LINES = 14
MAX_PARAMETERS = 8
MAX_BYTES = 60_000
CELL_SECONDS = 300
SHELL_LINE = re.compile(r"^\s*(!|%%?(sh|bash|system|pip|conda|cd)\b)", re.MULTILINE)


def cells_of(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


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


@pytest.mark.parametrize("path", LOCAL, ids=lambda path: path.name)
def test_nbval_runs_it(path: Path) -> None:
    pytest.importorskip("nbval")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "-q",
        "-p",
        "no:cacheprovider",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=CELL_SECONDS, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert f"{len(cells_of(path, 'code'))} passed" in done.stdout


def outputs_by_cell(path: Path) -> dict[str, dict]:
    """cell id -> the mime types and data its outputs hold together."""
    return {
        cell.id: {kind: data for output in cell.outputs for kind, data in output.get("data", {}).items()}
        for cell in cells_of(path, "code")
    }


def test_papermill_runs_the_start_notebook_with_other_parameters(tmp_path: Path) -> None:
    papermill = pytest.importorskip("papermill")
    time = np.arange(22_050) / 22_050
    sweep = 0.3 * np.sin(2 * np.pi * np.cumsum(np.linspace(120, 180, len(time))) / 22_050)
    mine = write_audio(tmp_path / "mine.flac", Audio(np.stack([sweep, 0.5 * sweep]).astype(np.float32), 22_050))
    given = {
        "text": "Zwei kurze Sätze. One more, for 3.50 $!", "engine": "espeak", "key": 2.0,
        "index_rate": 0.0, "f0_method": "pm", "recording": str(mine), "seed": 7,
    }  # fmt: skip
    done = tmp_path / "done.ipynb"
    papermill.execute_notebook(
        ROOT / "notebooks" / "start.ipynb", done, parameters=given, progress_bar=False, cwd=str(tmp_path),
        execution_timeout=CELL_SECONDS, kernel_name="python3",
    )  # fmt: skip
    shown = outputs_by_cell(done)
    for cell in ("speak", "listen", "recording", "recording-listen"):
        assert "<audio" in shown[cell]["text/html"] and "data:audio/ogg;base64," in shown[cell]["text/html"]
    assert "image/png" in shown["see"] and "median f0 of the result" in shown["see"]["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in shown["panel"]
    texts = "".join(output.get("text", "") for cell in cells_of(done, "code") for output in cell.outputs)
    assert re.search(r"pitch: pm \(", texts) and "index_rate is 0" in texts
    assert done.stat().st_size < 1_500_000
    assert sorted(item.name for item in tmp_path.iterdir()) == ["done.ipynb", "mine.flac"]


def run_spark_notebook(done: Path, monkeypatch: pytest.MonkeyPatch, surroundings: dict, parameters: dict) -> str:
    """Execute spark.ipynb in a kernel with these environment variables; the text of all its outputs."""
    papermill = pytest.importorskip("papermill")
    for name, value in surroundings.items():
        monkeypatch.setenv(name, str(value))
    papermill.execute_notebook(
        ROOT / "notebooks" / "spark.ipynb", done, parameters=parameters, progress_bar=False, cwd=str(done.parent),
        execution_timeout=CELL_SECONDS, kernel_name="python3",
    )  # fmt: skip
    outputs = [output for cell in cells_of(done, "code") for output in cell.outputs]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def house_of_its_own(folder: Path) -> Path:
    """A root with the demo voice and nothing else: what a notebook writes stays below it."""
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "demo").symlink_to(RVCConfig().demo_dir)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_the_spark_notebook_says_how_to_get_the_weights_and_what_they_ask_for() -> None:
    words = "\n".join(cell.source for cell in cells_of(ROOT / "notebooks" / "spark.ipynb", "markdown"))
    assert GET in words and "CC BY-NC-SA 4.0" in words and "no commercial use" in words
    assert words.index("CC BY-NC-SA 4.0") < words.index(GET) and words.index("agreed") < words.index(GET)


def test_the_spark_notebook_clones_in_process_from_a_checkpoint(tmp_path: Path, spark_folder, monkeypatch) -> None:
    """The published layout with tiny random networks: every step is real, the sound is noise."""
    home = house_of_its_own(tmp_path / "home")
    surroundings = {"RVC_ROOT": home, "RVC_SPARK_SPARK": spark_folder, "TRITON_SERVER_PORT": free_port()}
    mine = write_audio(tmp_path / "mine.flac", Audio(0.1 * np.sin(np.arange(48_000) / 20).astype(np.float32), 16_000))
    given = {"text": "A short sentence, said twice.", "engine": "spark", "recording": str(mine), "seed": 3}
    done = tmp_path / "done.ipynb"
    told = run_spark_notebook(done, monkeypatch, surroundings, {**given, "transcript": "Ah."})
    assert "spark speaks: as set." in told and re.search(r"spark_[0-9a-f]+\.safetensors: [\d,]+ bytes", told)
    assert "left after" in told and re.search(r"\d pieces?, \d", told) and "none was asked for" in told
    shown = outputs_by_cell(done)
    assert shown["stream"]["text/html"].count("data:image/png") == 1 and "<audio" in shown["rvc"]["text/html"]
    compared = shown["compare"]["text/html"]
    assert compared.count("<audio") == 2 and "failed" not in compared and "CC BY-NC-SA 4.0" in compared
    assert sorted(item.name for item in tmp_path.iterdir()) == ["done.ipynb", "home", "mine.flac"]


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
    surroundings = {
        "RVC_ROOT": home, "RVC_SPARK_SPARK": spark_folder,
        "TRITON_SERVER_ADDR": "127.0.0.1", "TRITON_SERVER_PORT": port,
    }  # fmt: skip
    given = {"text": "A short sentence, said by a server.", "start_server": True, "seed": 3}
    told = run_spark_notebook(tmp_path / "done.ipynb", monkeypatch, surroundings, given)
    assert re.search(rf"127\.0\.0\.1:{port} \| embedded \|", told) and f"ready on 127.0.0.1:{port}" in told
    assert "triton speaks: a server answers at" in told and "nothing of this notebook is left running" in told
    compared = outputs_by_cell(tmp_path / "done.ipynb")["compare"]["text/html"]
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
