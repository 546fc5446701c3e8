"""Every notebook is executed by papermill and what it leaves behind is looked at: results, no error, no large sound."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from notebook_place import (
    MAX_AUDIO_CHARACTERS,
    NOTEBOOKS,
    ROOT,
    audio_characters,
    cells_of,
    check_stored,
    house_of_its_own,
    nbformat,
    outputs_by_cell,
    quick_first,
    run_with_papermill,
    surroundings,
    told_by,
)

from rvc_spark.audio import Audio, write_audio

SPECIAL = ("start.ipynb", "spark.ipynb")  # executed below with other parameters than their own
FAILED = nbformat.v4.new_output("error", ename="ZeroDivisionError", evalue="by zero", traceback=[])
QUICK = ("stream.ipynb", "triton_spark_rvc.ipynb")  # batch.ipynb has a papermill test of its own, voila the studio
ORDINARY = [path for path in NOTEBOOKS if path.name not in SPECIAL]


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder; kernels that are started see an empty home, no server and no network."""
    for name, value in surroundings(house_of_its_own(tmp_path / "home")).items():
        monkeypatch.setenv(name, value)
    work = tmp_path / "work"
    work.mkdir()
    return work


# ------------------------------------------------------------------------------------------------------- the rule


def test_sound_is_found_wherever_it_is_stored() -> None:
    sound = base64.b64encode(bytes(300_000)).decode()
    state = {"model_name": "AnyModel", "state": {}, "buffers": [{"encoding": "base64", "path": ["x"], "data": sound}]}
    for node in (
        {"data": {"text/html": f'<audio src="data:audio/wav;base64,{sound}">'}},
        {"data": {"text/html": [f'<source src="data:audio/ogg;codecs=vorbis;base64,{sound[:100_000]}"', "/>", sound]}},
        {"data": {"audio/wav": sound}},
        {"data": {"application/javascript": f"play('data:application/octet-stream;base64,{sound}')"}},
        state,
    ):
        assert audio_characters(node) >= 100_000
    picture = {"image/png": sound, "text/html": f'<img src="data:image/png;base64,{sound}">'}
    assert audio_characters({"data": picture}) == 0


@pytest.mark.parametrize("where", ["output", "widget", "attachment"])
def test_a_notebook_with_a_large_sound_is_refused(tmp_path: Path, where: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", execution_count=1)])
    (cell,) = notebook.cells
    address = f"data:audio/wav;base64,{'A' * (MAX_AUDIO_CHARACTERS + 4)}"
    path = tmp_path / "done.ipynb"
    nbformat.write(notebook, path)
    check_stored(path)
    if where == "output":
        cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": f'<audio src="{address}">'})]
    elif where == "widget":
        held = {"state": {"1": {"model_name": "HTMLModel", "state": {"value": address}}}}
        notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": held}
    else:
        notebook.cells = [cell, nbformat.v4.new_markdown_cell("x", attachments={"a.wav": {"audio/wav": address}})]
    nbformat.write(notebook, path)
    with pytest.raises(AssertionError, match="characters of sound"):
        check_stored(path)


def test_a_notebook_with_an_error_or_a_cell_that_did_not_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "done.ipynb"
    for cell, words in (
        (nbformat.v4.new_code_cell("1"), "did not run"),
        (nbformat.v4.new_code_cell("1", execution_count=1, outputs=[FAILED]), "ZeroDivisionError"),
        (
            nbformat.v4.new_code_cell(
                "1", execution_count=1,
                outputs=[nbformat.v4.new_output("stream", name="stderr", text="Traceback (most recent call last)")],
            ),
            "Traceback",
        ),
    ):  # fmt: skip
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
        with pytest.raises(AssertionError, match=words):
            check_stored(path)


# -------------------------------------------------------------------------------------------------- every notebook


@pytest.mark.parametrize("path", quick_first(ORDINARY, *QUICK), ids=lambda path: path.name)
def test_papermill_runs_it_and_what_it_leaves_is_small(path: Path, alone: Path) -> None:
    check_stored(run_with_papermill(path, alone / "done.ipynb"))


def test_papermill_runs_the_start_notebook_with_other_parameters(alone: Path) -> None:
    time = np.arange(22_050) / 22_050
    sweep = 0.3 * np.sin(2 * np.pi * np.cumsum(np.linspace(120, 180, len(time))) / 22_050)
    mine = write_audio(alone / "mine.flac", Audio(np.stack([sweep, 0.5 * sweep]).astype(np.float32), 22_050))
    given = {
        "text": "Zwei kurze Sätze. One more, for 3.50 $!", "engine": "espeak", "key": 2.0,
        "index_rate": 0.0, "f0_method": "pm", "recording": str(mine), "seed": 7,
    }  # fmt: skip
    done = run_with_papermill(ROOT / "notebooks" / "start.ipynb", alone / "done.ipynb", given)
    check_stored(done)
    shown = outputs_by_cell(done)
    for cell in ("speak", "listen", "recording", "recording-listen"):
        assert "<audio" in shown[cell]["text/html"] and "data:audio/ogg;base64," in shown[cell]["text/html"]
    assert "image/png" in shown["see"] and "median f0 of the result" in shown["see"]["text/plain"]
    assert "application/vnd.jupyter.widget-view+json" in shown["panel"]
    texts = "".join(output.get("text", "") for cell in cells_of(done, "code") for output in cell.outputs)
    assert re.search(r"pitch: pm \(", texts) and "index_rate is 0" in texts
    assert done.stat().st_size < 1_500_000
    assert sorted(item.name for item in alone.iterdir()) == ["done.ipynb", "mine.flac"]


def test_the_spark_notebook_clones_in_process_from_a_checkpoint(alone: Path, spark_folder, monkeypatch) -> None:
    """The published layout with tiny random networks: every step is real, the sound is noise."""
    monkeypatch.setenv("RVC_SPARK_SPARK", str(spark_folder))
    mine = write_audio(alone / "mine.flac", Audio(0.1 * np.sin(np.arange(48_000) / 20).astype(np.float32), 16_000))
    given = {"text": "A short sentence, said twice.", "engine": "spark", "recording": str(mine), "seed": 3}
    done = run_with_papermill(
        ROOT / "notebooks" / "spark.ipynb", alone / "done.ipynb", {**given, "transcript": "Ah."}
    )  # fmt: skip
    check_stored(done)
    told = told_by(done)
    assert "spark speaks: as set." in told and re.search(r"spark_[0-9a-f]+\.safetensors: [\d,]+ bytes", told)
    assert "left after" in told and re.search(r"\d pieces?, \d", told) and "none was asked for" in told
    shown = outputs_by_cell(done)
    assert shown["stream"]["text/html"].count("data:image/png") == 1 and "<audio" in shown["rvc"]["text/html"]
    compared = shown["compare"]["text/html"]
    assert compared.count("<audio") == 2 and "failed" not in compared and "CC BY-NC-SA 4.0" in compared
    assert sorted(item.name for item in alone.iterdir()) == ["done.ipynb", "mine.flac"]
