"""A batch: hostile lists, resuming after a kill, nothing made twice, and a report that is text and pictures only."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvc_spark.audio import Audio, read_audio, write_audio
from rvc_spark.errors import ConfigError, OutputError, TextError
from rvc_spark.jobs import batch_csv, batch_list
from rvc_spark.jobs.batch import BatchRow, plan_batch, run_batch
from rvc_spark.jobs.batch_list import example_batch, read_batch, spoken_markdown
from rvc_spark.jobs.batch_measure import median_hz, pitch_error_cents
from rvc_spark.jobs.batch_names import distinct_names, safe_name
from rvc_spark.jobs.batch_plan import BatchOptions, Planner
from rvc_spark.jobs.batch_report import summarise, write_tables
from rvc_spark.jobs.batch_store import BatchStore, read_records
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.rvc_init import get_vc, speak
from rvc_spark.widgets import batch_page
from rvc_spark.widgets.batch_page import report_page
from rvc_spark.widgets.batch_pictures import COLUMNS, RESULT_COLOUR, SOURCE_COLOUR, thumbnail
from rvc_spark.widgets.batch_report import BatchReport, write_report
from rvc_spark.widgets.palette_png import palette_png

CLIP = RVCConfig().demo_dir / "examples" / "source_awb.wav"
QUICK = BatchOptions(engine="espeak", settings={"f0_method": "pm"})


def table(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def entries_of(tmp_path: Path, text: str | bytes, **options):
    return read_batch(table(tmp_path / "list.csv", text), **options).entries


def statuses(rows: list[BatchRow]) -> dict[str, tuple[str, bool]]:
    return {row.entry.id: (row.status, row.fresh) for row in rows}


class TestTables:
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_the_dialects_of_spreadsheets(self, tmp_path: Path, delimiter: str, start: bytes, end: str) -> None:
        rows = ["ID|Text|key", 'a|"One, two; three\tand ""four"""|2.5', "", "b|Plain  |", 'c| "led by a space" |-1']
        text = end.join(row.replace("|", delimiter) for row in rows)
        first, second, third = entries_of(tmp_path, start + text.encode())
        assert (first.id, first.text, first.settings) == ("a", 'One, two; three\tand "four"', {"key": 2.5})
        assert (second.text, second.settings, second.place) == ("Plain", {}, "row 2 (line 4)")
        assert (third.text, third.settings) == ("led by a space", {"key": -1})

    def test_a_single_column_keeps_its_commas(self, tmp_path: Path) -> None:
        first, second = entries_of(tmp_path, 'text\nWell, yes; no.\n"Two\nlines."\n')
        assert (first.text, second.text, second.id) == ("Well, yes; no.", "Two\nlines.", "0002")

    def test_a_decimal_comma_is_a_number(self, tmp_path: Path) -> None:
        (entry,) = entries_of(tmp_path, "text;key;seed;auto_key\nHa.;1,5;7;voice\n")
        assert entry.settings == {"key": 1.5, "seed": 7, "auto_key": "voice"}
        assert isinstance(entry.settings["seed"], int)

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ('a,"never closed', "opened and not closed"),
            ('a,"closed" too early', "closes before the end"),
            ("a,one, two", "3 cells, the header 2"),
            ("a,", "neither text nor audio"),
            ("a,... !", "no letter and no digit"),
            ("a,nul\0byte", "U+0000"),
            (b"a,caf\xe9", "not UTF-8"),
            ("../a,word", "is a path"),
            ("C:\\a,word", "is a path"),
            ("good,word", "also the id of row 1"),
            ("\x1b[2J,word", "cannot be printed"),
            (f"{'x' * 101},word", "101 characters"),
            ("-,word", "no letter"),
        ],
    )
    def test_a_bad_row_is_named_and_spoils_no_other(self, tmp_path: Path, row: str | bytes, words: str) -> None:
        row = row if isinstance(row, bytes) else row.encode()
        good, bad, last = entries_of(tmp_path, b"id,text\ngood,One.\n" + row + b"\nlast,Two.\n")
        assert good.error is None and last.error is None and last.text == "Two."
        assert bad.error.problem.startswith("row 2 (line 3)") and words in bad.error.problem, bad.error
        assert bad.error.next_step and bad.id not in ("good", "last") and bad.error.problem.isprintable()

    @pytest.mark.parametrize(
        ("cell", "words"),
        [("abc", "column key: 'abc' is not a number"), ("99", "outside -48 to 48"), ("nan", "outside"), ("inf", "out")],
    )
    def test_a_bad_setting_names_column_value_and_range(self, tmp_path: Path, cell: str, words: str) -> None:
        bad, good = entries_of(tmp_path, f"text,key\nOne.,{cell}\nTwo.,1\n")
        assert isinstance(bad.error, ConfigError) and words in str(bad.error) and "row 1" in str(bad.error)
        assert good.error is None

    def test_files_outside_the_folder_of_the_list_are_not_read(self, tmp_path: Path) -> None:
        inside = tmp_path / "lists"
        inside.mkdir()
        for name in (inside / "own.wav", tmp_path / "secret.wav"):
            name.write_bytes(CLIP.read_bytes())
        (inside / "link.wav").symlink_to(tmp_path / "secret.wav")
        (inside / "round").symlink_to("round")
        long = "x" * 5000
        names = ["own.wav", "../secret.wav", str(tmp_path / "secret.wav"), "link.wav", "none.wav", "round", long, "."]
        source = table(inside / "l.csv", "audio\n" + "\n".join(names))
        errors = [entry.error for entry in read_batch(source).entries]
        assert errors[0] is None and all("lies outside" in error.problem for error in errors[1:4])
        assert all(isinstance(error, ConfigError) for error in errors[1:])
        assert [entry.error is None for entry in read_batch(source, outside=True).entries[:4]] == [True] * 4

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"", "is empty"),
            (b"\xff\xfea\0", "UTF-16"),
            (b"name,words\n1,2\n", "names no known column"),
            (b"text,key,Text\nA.,1,B.\n", "twice"),
            (b"id,key\n1,2\n", "neither a column text"),
            (b"id,text\n\n,\n", "holds no rows"),
            (CLIP.read_bytes()[:4000], "names no known column"),
            (b"id,text\n" + b'a,"b"c\n' * 101, "broken quotation marks"),
        ],
    )
    def test_what_is_no_list_is_refused(self, tmp_path: Path, data: bytes, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            entries_of(tmp_path, data)

    def test_limits_hold(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setattr(batch_list, "MAX_ITEMS", 2)
        with pytest.raises(ConfigError, match="more than 2 rows"):
            entries_of(tmp_path, "text\nA\nB\nC\n")
        monkeypatch.setattr(batch_csv, "MAX_LIST_BYTES", 8)
        with pytest.raises(ConfigError, match="more than 8 bytes"):
            entries_of(tmp_path, "text\nAAAA\n")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
    def test_a_pipe_does_not_hang(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "list.csv")
        with pytest.raises(ConfigError, match="not a plain file"):
            read_batch(tmp_path / "list.csv")

    def test_columns_that_are_not_used_are_told(self, tmp_path: Path) -> None:
        listing = read_batch(table(tmp_path / "l.csv", "text,kye,notes\nA.,3,x\n"))
        assert listing.notes == ("column 'kye' is not used; is key meant?", "column 'notes' is not used")

    def test_the_example_is_a_list(self, tmp_path: Path) -> None:
        entries = read_batch(example_batch(tmp_path)).entries
        assert [entry.id for entry in entries] == ["welcome", "question", "low"] and entries[2].settings == {"key": -5}


class TestFolders:
    def test_texts_and_sounds_become_items(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "out").mkdir()
        for name in ("a.wav", "sub/b.WAV", ".hidden.wav", "out/c.wav"):
            (tmp_path / name).write_bytes(CLIP.read_bytes())
        (tmp_path / "a.txt").write_text("Hello.")
        (tmp_path / "d.md").write_text("# A *title*\n\n> Read [this](http://x.y).\n")
        (tmp_path / "e.txt").write_bytes(b"\xff\xfe\0")
        (tmp_path / "f.pdf").write_text("no")
        entries = read_batch(tmp_path, output=tmp_path / "out").entries
        assert [entry.id for entry in entries] == ["a_txt", "a_wav", "d", "e", "sub/b"]
        assert entries[2].text == "A title\n\nRead this.\n" and entries[4].name == "sub/b"
        assert isinstance(entries[3].error, TextError) and "UTF-8" in str(entries[3].error)

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no texts and no sounds"):
            read_batch(tmp_path)

    def test_marks_nobody_would_read_out(self) -> None:
        assert spoken_markdown("a * b, 3 > 2, `code`, ![](x), #5, snake_case") == "a * b, 3 > 2, code, , #5, snake_case"


class TestNames:
    @pytest.mark.parametrize("name", ["CON", "nul.txt", "com1", "a:b", "end.", " x", "~x", "‮evil", "é" * 90])
    def test_names_are_safe_everywhere(self, name: str) -> None:
        safe = safe_name(name)
        assert safe != name and len(safe.encode()) <= 130 and not set(safe) & set('<>:"/\\|?*') and safe.isprintable()
        assert safe.split(".")[0].lower() not in ("con", "nul", "com1") and not safe.endswith((".", " "))

    def test_plain_names_stay_and_equal_ones_part(self) -> None:
        names = distinct_names(["a", "A", "b", "x/CON", "x:y", "x?y", "Ünï 1.2-3"])
        assert names[2] == "b" and names[6] == "Ünï 1.2-3" and names[3].startswith("x/_CON-")
        assert len({name.casefold() for name in names}) == 7


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[BatchRow]]:
    """A batch of five, two of them bad. Not to be changed."""
    folder = tmp_path_factory.mktemp("batch")
    (folder / "broken.wav").write_bytes(b"RIFF and no more")
    source = table(
        folder / "list.csv",
        'id,text,audio,key\nhello,"Hello, <b>you</b>.",,\nbad key,Word.,,high\nlow,Hello again.,,-5\n'
        "=1+1,=SUM(A1),,\nbroken,,broken.wav,\n",
    )
    return source, folder / "out", list(run_batch(source, folder / "out", QUICK))


class TestRun:
    def test_good_items_are_made_and_bad_ones_told(self, made) -> None:
        _, folder, rows = made
        assert statuses(rows) == {
            "bad key": ("failed", False), "hello": ("made", True), "low": ("made", True), "=1+1": ("made", True),
            "broken": ("failed", True),
        }  # fmt: skip
        assert [row.number for row in rows] == [1, 2, 3, 4, 5] and rows[-1].fraction == 1.0
        told = {path.name for path in (folder / "sounds").iterdir()}
        assert told == {"hello.flac", "low.flac", "=1+1.flac"}
        (row,) = [row for row in rows if row.entry.id == "low"]
        metrics, sound = row.metrics, read_audio(row.file)
        assert (sound.frames, sound.rate) == (metrics["samples"], metrics["rate"])
        assert metrics["pitch_error_cents"] < 50 and 0 < metrics["voiced_share"] <= 1
        assert metrics["clipped_samples"] == 0 and metrics["remarks"] == []
        assert -40 < metrics["lufs"] < 0 and metrics["key"] == -5.0
        assert metrics["result_f0_hz"] == pytest.approx(metrics["source_f0_hz"] * 2 ** (-5 / 12), rel=0.1)
        assert row.record["engines"]["tts"]["value"] == "espeak"

    def test_it_is_what_speak_makes(self, made) -> None:
        _, _, rows = made
        (row,) = [row for row in rows if row.entry.id == "hello"]
        speech = speak(row.entry.text, engine="espeak", **QUICK.settings)
        assert np.abs(read_audio(row.file).samples - speech.audio.samples).max() < 2.1 / 32768  # rounding and dither
        assert speech.conversion.settings.as_dict() == row.record["settings"]

    def test_again_nothing_is_made(self, made) -> None:
        source, folder, rows = made
        before = (folder / "results.jsonl").read_bytes()
        again = list(run_batch(source, folder, QUICK))
        assert not any(row.fresh for row in again) and {row.status for row in again} == {"kept", "failed"}
        assert (folder / "results.jsonl").read_bytes() == before
        assert str(next(row.error for row in again if row.entry.id == "broken")) == str(rows[-1].error)
        plan = plan_batch(source, folder, QUICK)
        assert repr(plan) == "5 items: 0 to make, 3 kept as they are, 2 that cannot be made or failed before"

    def test_a_plan_says_what_would_be_made_and_why(self, made) -> None:
        source, folder, _ = made
        for options, count, words in (
            ({"redo": "failed"}, 1, "1 failed before"),
            ({"redo": "all"}, 4, "4 asked for"),
            ({"format": "wav"}, 4, "4 changed"),
            ({"sample_format": "pcm24"}, 4, "4 changed"),
            ({"settings": {"f0_method": "pm", "index_rate": 0.0}}, 4, "4 changed"),
            ({"tts": {"speed": 200}}, 3, "3 changed"),
        ):
            plan = plan_batch(source, folder, BatchOptions(**{**vars(QUICK), **options}))
            assert plan.count("make") == count and words in repr(plan), (options, plan)
        assert plan_batch(source, folder.parent / "new", QUICK).count("make") == 4
        assert not (folder.parent / "new").exists()

    def test_the_shared_voice_is_left_alone(self, made) -> None:
        voice = get_vc().voice
        list(run_batch(made[0], made[1], BatchOptions(**{**vars(QUICK), "redo": "failed"})))
        assert get_vc().voice is voice

    @pytest.mark.parametrize(
        "values", [{"format": "exe"}, {"redo": "never"}, {"settings": {"kye": 1}}, {"sample_format": "float32"}]
    )
    def test_bad_options_are_refused(self, values: dict) -> None:
        with pytest.raises((ConfigError, OutputError)):
            BatchOptions(**values)

    def test_a_voice_or_engine_that_is_missing_fails_its_items_only(self, tmp_path: Path) -> None:
        source = table(tmp_path / "l.csv", "id,text,voice,engine\na,One.,nobody,\nb,Two.,,spark\nc,Three.,,\n")
        rows = statuses(list(run_batch(source, tmp_path / "out", QUICK)))
        assert rows["a"] == ("failed", False) and rows["c"] == ("made", True)
        assert rows["b"][0] == "failed" or RVCConfig().spark_dir.is_dir()


class TestResuming:
    def test_what_changed_is_made_again_and_nothing_else(self, tmp_path: Path) -> None:
        source = table(tmp_path / "l.csv", "id,text\na,One.\nb,Two.\nc,Three.\n")
        out = tmp_path / "out"
        work = run_batch(source, out, QUICK)
        assert next(work).entry.id == "a"
        work.close()  # the consumer loses interest; the lock is free
        assert statuses(list(run_batch(source, out, QUICK))) == {
            "a": ("kept", False), "b": ("made", True), "c": ("made", True)
        }  # fmt: skip
        sounds = {name: (out / "sounds" / f"{name}.flac").read_bytes() for name in "abc"}
        table(source, "id,text\nc,Three.\na,Other words.\nb,Two.\nd,Four.\n")
        (out / "sounds" / "b.flac").write_bytes(sounds["b"][:-10])
        rows = statuses(list(run_batch(source, out, QUICK)))
        assert rows == {"c": ("kept", False), "a": ("made", True), "b": ("made", True), "d": ("made", True)}
        assert (out / "sounds" / "b.flac").read_bytes() == sounds["b"]  # the same again, to the byte
        assert (out / "sounds" / "a.flac").read_bytes() != sounds["a"]
        wav = BatchOptions(**{**vars(QUICK), "format": "wav"})
        assert all(row.fresh for row in run_batch(source, out, wav))
        assert {path.suffix for path in (out / "sounds").iterdir()} == {".wav"}

    def test_killed_in_the_middle_nothing_is_lost_and_nothing_half(self, tmp_path: Path) -> None:
        """The process dies between the third sound and its record, the worst moment there is."""
        source = table(tmp_path / "l.csv", "id,text\na,One.\nb,Two.\nc,Three.\nd,Four.\n")
        out = tmp_path / "out"
        code = (
            "import sys, time\nfrom rvc_spark.jobs.batch import run_batch\n"
            "from rvc_spark.jobs.batch_plan import BatchOptions\n"
            "wait = lambda entry, *_: entry.id == 'c' and (print('now', flush=True), time.sleep(600))\n"
            "options = BatchOptions(engine='espeak', settings={'f0_method': 'pm'})\n"
            "list(run_batch(sys.argv[1], sys.argv[2], options, on_item=wait))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(source), str(out)], stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"now\n"
        finally:
            process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            process.wait()
            process.stdout.close()
        (out / "sounds" / ".0123456789abcdef.part").write_bytes(b"half")
        with (out / "results.jsonl").open("ab") as file:
            file.write(b'{"id": "c", "status": "ma')  # as if the power had failed
        assert list(read_records(out)) == ["a", "b"]
        rows = statuses(list(run_batch(source, out, QUICK)))
        assert rows == {"a": ("kept", False), "b": ("kept", False), "c": ("made", True), "d": ("made", True)}
        assert sorted(path.name for path in (out / "sounds").iterdir()) == ["a.flac", "b.flac", "c.flac", "d.flac"]
        lines = (out / "results.jsonl").read_text().splitlines()
        assert [json.loads(line).get("id") for line in lines] == [None, "a", "b", "c", "d"]

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        with BatchStore(tmp_path / "out"), pytest.raises(OutputError, match="another batch"):
            BatchStore(tmp_path / "out")

    def test_a_folder_with_other_things_is_left_alone(self, tmp_path: Path, made) -> None:
        (tmp_path / "thesis.txt").write_text("precious")
        with pytest.raises(OutputError, match="other things"):
            next(run_batch(made[0], tmp_path, QUICK))
        with pytest.raises(OutputError, match="not a folder"):
            next(run_batch(made[0], tmp_path / "thesis.txt", QUICK))
        with pytest.raises(ConfigError, match="where the results go"):
            next(run_batch(made[1] / "sounds", made[1], QUICK))
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("line", ["[1]", '{"id": 3}', "{" * 99_999, '{"id":"a","x":NaN}', "\0", '{"id":"a"'])
    def test_broken_records_are_dropped(self, tmp_path: Path, line: str) -> None:
        with BatchStore(tmp_path / "o") as store:
            store.add({"id": "kept"})
        with (tmp_path / "o" / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        with BatchStore(tmp_path / "o") as store:
            assert list(store.records) == ["kept"]

    def test_forged_records_lead_nowhere(self, made) -> None:
        """A record of a stranger cannot name a file: names come from the list."""
        source, folder, _ = made
        forged = {"id": "hello", "status": "made", "file": "../../list.csv", "bytes": 1, "sha256": "", "metrics": {}}
        for record in (forged, {"id": "hello", "status": "failed", "error": {"kind": "BaseException", "problem": 3}}):
            records = {**read_records(folder), "hello": record}
            plan = Planner(QUICK, folder, records).plan(read_batch(source))
            assert plan.steps[0].action == "make"


@pytest.fixture(scope="module")
def report(made) -> BatchReport:
    return write_report(made[1], summarise(made[2]), title="<i>My</i> batch", notes=("column 'x' is not used",))


class TestReport:
    def test_the_page_is_text_and_pictures_only(self, report: BatchReport) -> None:
        page = report.path.read_text(encoding="utf-8")
        assert "default-src 'none'" in page and "&lt;i&gt;My&lt;/i&gt; batch" in page
        assert "&lt;b&gt;you&lt;/b&gt;" in page and "<b>you" not in page and "<script" not in page.lower()
        assert "http://" not in page and "https://" not in page and " on" + "click" not in page
        assert page.index("bad key") < page.index("Sounds") < page.index("hello")
        assert page.count("data:image/png;base64,") == 3 and 'src="sounds/%3D1%2B1.flac"' in page
        assert "column &#x27;x&#x27; is not used" in page

    def test_many_pictures_are_linked_and_many_items_counted(self, made, report: BatchReport, monkeypatch) -> None:
        monkeypatch.setattr(batch_page, "EMBEDDED_BYTES", 100)
        monkeypatch.setattr(batch_page, "MAX_ITEMS", 2)
        pictures = {row.entry.id: b"x" * 60 for row in report.rows}
        page = report_page("t", report.summary, pictures)
        assert 'src="pictures/hello.png"' in page and "base64" not in page and "1 more are in report.csv" in page

    def test_pictures_that_are_missing_are_drawn_again(self, made, report: BatchReport) -> None:
        names = {path.name for path in (made[1] / "pictures").iterdir()}
        assert names == {"hello.png", "low.png", "=1+1.png"}

    def test_a_spreadsheet_computes_nothing(self, report: BatchReport) -> None:
        rows = list(csv.DictReader(io.StringIO((report.folder / "report.csv").read_text("utf-8-sig"), newline="")))
        assert [row["id"] for row in rows] == ["hello", "bad key", "low", "'=1+1", "broken"]
        assert rows[3]["title"] == "'=SUM(A1)" and float(rows[2]["key"]) == -5 and rows[4]["error"]
        told = json.loads((report.folder / "report.json").read_text())
        assert told["totals"]["made"] == 3 and told["totals"]["failed"] == 2 and told["items"][3]["title"] == "=SUM(A1)"
        assert told["items"][0]["settings"]["auto_key"] == "voice" and len(told["items"][0]["sha256"]) == 64

    def test_the_cell_stays_small(self, report: BatchReport) -> None:
        many = BatchReport(summarise(report.rows * 300), report.folder)
        shown = many._repr_html_()
        assert len(shown) < 200_000 and "and 892 more" in shown and "and 590 more that failed" in shown
        assert "<b>you" not in shown and shown.count("<img") == 8
        assert "5 items: 3 made" in repr(report) and len(report.table().rows) == 3

    def test_an_empty_report_can_be_written(self, tmp_path: Path) -> None:
        summary = summarise([])
        assert summary.totals()["real_time_factor"] is None and "0 items" in repr(summary)
        write_tables(tmp_path, summary)
        assert "Sounds" not in report_page("none", summary, {})


def test_the_picture_shows_the_pitch_where_it_is(tmp_path: Path) -> None:
    """100 Hz lies a quarter up from 50 to 800 Hz, 400 Hz three quarters; silence has no line."""
    import matplotlib.image

    sound = Audio(0.1 * np.sin(2 * np.pi * 100 * np.arange(16_000) / 16_000).astype(np.float32), 16_000)
    f0 = np.r_[np.full(50, 100.0), np.zeros(50)]
    path = tmp_path / "t.png"
    path.write_bytes(thumbnail(sound, sound, f0, 4 * f0))
    pixels = np.rint(255 * matplotlib.image.imread(path)[..., :3]).astype(int)
    assert pixels.shape == (124, COLUMNS, 3)
    for colour, top, height in ((SOURCE_COLOUR, 0, 0.25), (RESULT_COLOUR, 64, 0.75)):
        rows, columns = np.nonzero((pixels == colour).all(axis=2))
        assert columns.max() < COLUMNS // 2 and set(columns) == set(range(COLUMNS // 2))
        assert abs(rows.mean() - top - (1 - height) * 59) < 1
    assert len(thumbnail(None, sound)) < len(thumbnail(sound, sound)) < 20_000


@pytest.mark.parametrize(("colours", "width"), [(2, 1), (16, 7), (17, 8), (256, 3)])
def test_pictures_of_every_size_can_be_read(tmp_path: Path, colours: int, width: int) -> None:
    import matplotlib.image

    random = np.random.default_rng(colours)
    palette = random.integers(0, 256, (colours, 3), np.uint8)
    indices = random.integers(0, colours, (5, width)).astype(np.uint8)
    path = tmp_path / "t.png"
    path.write_bytes(palette_png(indices, palette))
    assert (np.rint(255 * matplotlib.image.imread(path)[..., :3]) == palette[indices]).all()


def test_figures_of_pitch() -> None:
    asked, measured = np.array([100.0, 200.0, 0.0, 100.0]), np.array([100.0, 400.0, 100.0, 0.0, 5.0])
    assert pitch_error_cents(asked, measured) == 600.0 and pitch_error_cents(asked, 0 * measured) is None
    assert median_hz(np.array([0.0, 100.0, 300.0])) == 200.0
    assert median_hz(np.zeros(3)) is None and median_hz(None) is None


def test_silence_is_remarked_and_reported(tmp_path: Path) -> None:
    write_audio(tmp_path / "silence.wav", Audio(np.zeros(16_000, np.float32), 16_000))
    (row,) = run_batch(table(tmp_path / "l.csv", "audio\nsilence.wav\n"), tmp_path / "out", QUICK)
    assert row.status == "made" and row.metrics["source_f0_hz"] is None and "no pitch" in row.metrics["remarks"][-1]
    shown = write_report(tmp_path / "out", summarise([row])).path.read_text(encoding="utf-8")
    assert "no pitch was found in the source" in shown
