"""batch.ipynb as papermill runs it: a list with bad rows, a report, a small notebook, and nothing made twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvc_spark.audio import read_audio
from rvc_spark.jobs.batch import BatchOptions, plan_batch
from rvc_spark.jobs.batch_store import read_records

nbformat = pytest.importorskip("nbformat", reason="pip install 'rvc-spark[dev,lab]'")
papermill = pytest.importorskip("papermill", reason="pip install 'rvc-spark[lab]'")

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "batch.ipynb"
CELL_SECONDS = 300
LIST = """id;text;key
hello;Hello there.;
../up;This id is a path.;
soft;"Softly; and slowly.";-1,5
loud;So high that nobody can.;400
last;The end.;
"""


def test_papermill_makes_a_list_and_a_second_run_finds_it_made(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(LIST, encoding="utf-8")
    out, done = tmp_path / "out", tmp_path / "done.ipynb"
    given = {
        "source": "list.csv", "output": "out", "engine": "espeak", "key": 1.0, "index_rate": 0.0, "format": "ogg",
    }  # fmt: skip
    papermill.execute_notebook(
        NOTEBOOK, done, parameters=given, progress_bar=False, cwd=str(tmp_path), execution_timeout=CELL_SECONDS,
        kernel_name="python3",
    )  # fmt: skip
    assert done.stat().st_size < 250_000
    cells = {cell.id: cell for cell in nbformat.read(done, as_version=4).cells}
    shown = {
        name: "\n".join(
            output.get("text", "") + "".join(str(data) for data in output.get("data", {}).values())
            for output in cell.get("outputs", [])
        )
        for name, cell in cells.items()
    }
    assert "5 items: 3 to make (3 new), 0 kept as they are, 2 that cannot be made" in shown["plan"]
    assert "row 2 (line 3), column id" in shown["list"] and "row 4 (line 5), column key" in shown["run"]
    assert shown["run"].count("data:image/png") == 3 and "5 items: 3 made" in shown["run"]
    assert "data:audio/ogg" in shown["listen"] and len(shown["listen"]) < 200_000
    assert "0 made, 3 kept as they were, 2 failed" in shown["again"]
    assert "5 items: 2 to make (2 changed), 1 kept" in shown["other"]

    records = read_records(out)
    assert list(records) == ["hello", "soft", "last"]
    assert [record["metrics"]["key"] - records["hello"]["metrics"]["key"] for record in records.values()] != [0, 0, 0]
    for name in records:
        assert read_audio(out / "sounds" / f"{name}.ogg").seconds > 0.3
        assert (out / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((out / "report.json").read_text())
    assert told["totals"] | {"made": 0} == told["totals"] and told["totals"]["kept"] == 3 == told["totals"]["items"] - 2
    assert (out / "report.html").read_text(encoding="utf-8").count("<audio") == 3

    settings = {"key": 1.0, "auto_key": "voice", "index_rate": 0.0}
    plan = plan_batch(tmp_path / "list.csv", out, BatchOptions(engine="espeak", settings=settings, format="ogg"))
    assert plan.count("make") == 0 and plan.count("keep") == 3
