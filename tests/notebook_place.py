"""What the tests of notebooks share: which there are, a home for their runs, and what stands in their outputs."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rvc_spark.rvc_config import RVCConfig

nbformat = pytest.importorskip("nbformat", reason="pip install 'rvc-spark[dev,lab]'")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "colab").glob("*.ipynb")])
CELL_SECONDS = 300
NOTEBOOK_SECONDS = 540  # the whole of one; it takes ten to thirty, and much longer on a machine that has other work
MAX_AUDIO_CHARACTERS = 200_000  # of base64 in one stored output
EMBEDDED = re.compile(r"data:(?:audio|video|application)/[^,\"'\s]*;base64,([A-Za-z0-9+/=\\n]*)")


def quick_first(paths: list[Path], *quick: str) -> list[Any]:
    """All of them as parameters; those not named as `quick` only run with --thorough (see conftest)."""
    return [path if path.name in quick else pytest.param(path, marks=pytest.mark.thorough) for path in paths]


def cells_of(path: Path, kind: str) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def outputs_by_cell(path: Path) -> dict[str, dict]:
    """cell id -> the mime types and data its outputs hold together."""
    return {
        cell.id: {kind: data for output in cell.outputs for kind, data in output.get("data", {}).items()}
        for cell in cells_of(path, "code")
    }


def told_by(path: Path) -> str:
    """All text of all outputs."""
    outputs = [output for cell in cells_of(path, "code") for output in cell.outputs]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def house_of_its_own(folder: Path) -> Path:
    """A root with the demo voice and nothing else: what a notebook writes stays below it."""
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "demo").symlink_to(RVCConfig().demo_dir)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def surroundings(home: Path) -> dict[str, str]:
    """Environment variables of a run: that home, no Triton server, no network."""
    return {"RVC_ROOT": str(home), "TRITON_SERVER_PORT": str(free_port()), "RVC_SPARK_OFFLINE": "1"}


def run_with_papermill(source: Path, done: Path, parameters: dict[str, Any] | None = None) -> Path:
    """Execute into `done`, with its folder as working directory; skips without papermill."""
    papermill = pytest.importorskip("papermill")
    papermill.execute_notebook(
        source, done, parameters=parameters or {}, progress_bar=False, cwd=str(done.parent),
        execution_timeout=CELL_SECONDS, kernel_name="python3",
    )  # fmt: skip
    return done


def audio_characters(node: Any) -> int:
    """Characters of base64 sound in an output or a widget's state: in data addresses, audio mime types, buffers."""
    if isinstance(node, str):
        return sum(len(found) for found in EMBEDDED.findall(node))
    if isinstance(node, list):
        return sum(map(audio_characters, node))
    if not isinstance(node, dict):
        return 0
    if node.get("encoding") == "base64" and isinstance(node.get("data"), str):
        return len(node["data"])
    return sum(
        len("".join(held)) if kind.startswith("audio/") and isinstance(held, str | list) else audio_characters(held)
        for kind, held in node.items()
    )


def stored_places(notebook: Any) -> Iterator[tuple[str, Any]]:
    """Every stored thing that may hold sound, with a name: outputs, widgets' states, attachments."""
    for number, cell in enumerate(notebook.cells):
        name = cell.get("id", str(number))
        for place, output in enumerate(cell.get("outputs", [])):
            yield f"{name}, output {place}", output
        yield f"{name}, attachments", cell.get("attachments", {})
    for kind, held in notebook.metadata.get("widgets", {}).items():
        for model, state in held.get("state", {}).items():
            yield f"{kind}, {state.get('model_name', model)}", state


def check_stored(done: Path) -> None:
    """The rules for a notebook that was executed and kept: every cell ran, nothing failed, no sound is large."""
    notebook = nbformat.read(done, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "a cell did not run"
    outputs = [output for cell in code for output in cell.outputs]
    failed = [f"{output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    failed += [output.text for output in outputs if output.output_type == "stream" and "Traceback" in output.text]
    assert not failed, f"a cell or one of its threads failed: {failed}"
    sizes = {place: audio_characters(node) for place, node in stored_places(notebook)}
    large = {place: size for place, size in sizes.items() if size > MAX_AUDIO_CHARACTERS}
    assert not large, f"more than {MAX_AUDIO_CHARACTERS:,} characters of sound in one output: {large}"
