"""Every way a sound leaves gets the watermark of the configuration, and there is only one place where it can leave.

The first half is read from source: encoders are made in one place, and nobody else writes sound. The second half goes
over every output of the package with the real network; the sounds and engines in front of it are small.
"""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_studio import House, studio_in

from rvc_spark import demo
from rvc_spark.audio import (
    Audio,
    EncodeOptions,
    encode_audio,
    open_pipe,
    open_writer,
    read_audio,
    use_watermark,
    write_audio,
)
from rvc_spark.cli import main
from rvc_spark.covers.song_cover import make_cover
from rvc_spark.errors import MissingPackageError, WatermarkError
from rvc_spark.installed_packages import is_installed
from rvc_spark.jobs.batch import run_batch
from rvc_spark.jobs.batch_plan import BatchOptions
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.rvc_init import convert_audio, convert_folder, get_speakers, init_rvc, load_model, say, speak
from rvc_spark.rvc_modules import VC
from rvc_spark.streaming.pump import Pump
from rvc_spark.streaming.sinks import FileSink, MemorySink
from rvc_spark.watermark import verify_watermark
from rvc_spark.widgets.playing import play
from rvc_spark.widgets.plots import Picture
from rvc_spark.widgets.sound import show_audio
from rvc_spark.widgets.studio_takes import StudioTake

PACKAGE = Path(__file__).resolve().parent.parent / "rvc_spark"
CLIP = RVCConfig().demo_dir / "examples" / "source_awb.wav"
TEXT = "One sentence will do for this."
SPEECH = {"engine": "espeak"}
QUICK = {"f0_method": "pm", "index_rate": 0.0}

needs_perth = pytest.mark.skipif(not is_installed("perth"), reason="resemble-perth is not installed")


# ---- one place only --------------------------------------------------------------------------------------------------


@cache
def names_used(path: Path) -> set[str]:
    """Every name that is called, imported or passed on in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {
        alias.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }


def modules_imported(path: Path) -> set[str]:
    """Every part of every dotted name that a file imports."""
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    nodes = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom)]
    dotted = [f"{getattr(node, 'module', '')}.{alias.name}" for node in nodes for alias in node.names]
    return {part for name in dotted for part in name.split(".")}


def users_of(name: str) -> set[str]:
    return {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")
            if name in names_used(path)}  # fmt: skip


def test_encoders_are_made_in_one_place_and_nobody_else_writes_sound() -> None:
    assert users_of("make_sink") == {"audio_writer"}
    assert users_of("SampleWriter") == {"audio_writer", "audio_output"}
    assert users_of("streamed_wav_header") == {"audio_encode"}
    assert users_of("SoundFile") == {"audio_codec", "audio_encode"}  # one reads, one writes
    writers = {"wave", "wavfile", "aifc", "sunau"}
    assert not any(writers & modules_imported(path) for path in PACKAGE.rglob("*.py"))
    for opened in ("_WavSink", "_PipeSink", "_SoundFileSink", "M4aSink"):
        assert users_of(opened) == {"audio_encode"}


def test_who_writes_without_a_mark_on_purpose_is_known() -> None:
    """`watermark="none"` in the package: what is shown in a cell, a test of codecs, recordings of people, stages."""
    plain = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(text)) if "watermark=" in text else ()
        calls = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call)]
        options = [call for call in calls if call.startswith("EncodeOptions(")]
        if any("watermark='none'" in told or "watermark=SHOWN" in told for told in options):
            plain.add(path.relative_to(PACKAGE).with_suffix("").as_posix())
    assert plain == {"widgets/sound", "doctor", "profiles/voice_enrollment", "covers/cover_sources"}


# ---- every path ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VC]:
    """The shared VC under a configuration that says perth, with the demo voice."""
    vc = init_rvc(watermark="perth", tts="espeak", temp=tmp_path_factory.mktemp("temp"))
    load_model("demo")
    yield vc
    init_rvc()
    use_watermark(None)


@pytest.fixture(scope="module")
def clip() -> Audio:
    """1.5 s of a person."""
    sound = read_audio(CLIP)
    return Audio(sound.samples[16_000:40_000], sound.rate)


def marked(*sounds: Path | bytes | str) -> None:
    for sound in sounds:
        report = verify_watermark(sound)
        assert report.present, f"{sound!r:.60}: {report}"


@needs_perth
def test_writers_bytes_and_pipes(configured: VC, clip: Audio, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with open_writer(tmp_path / "a.flac", clip.rate, 1) as writer:
        writer.write(clip.samples)
    pipe = open_pipe(stream, clip.rate, 1)
    pipe.write(clip.samples)
    pipe.finish()
    files = [write_audio(tmp_path / f"b.{kind}", clip) for kind in ("wav", "flac", "ogg", "mp3", "m4a")]
    marked(tmp_path / "a.flac", *files, *(encode_audio(clip, EncodeOptions(format=kind)) for kind in ("wav", "ogg")))
    assert pipe.watermark is not None and pipe.watermark.present


@needs_perth
def test_the_verbs(configured: VC, clip: Audio, tmp_path: Path) -> None:
    conversion = convert_audio(clip, tmp_path / "a.wav", **QUICK)
    later = conversion.save(tmp_path / "later.mp3")
    assert conversion.watermark.present and conversion.report()["watermark"]["score"] > 0.8
    spoken = say(TEXT, tmp_path / "said.wav", **SPEECH)
    assert spoken.watermark.present and say(TEXT, **SPEECH).watermark is None
    speech = speak(TEXT, tmp_path / "spoken.flac", **SPEECH, **QUICK)
    assert speech.watermark.present
    marked(tmp_path / "a.wav", later, spoken.path, speech.path)
    source = write_audio(tmp_path / "in" / "one.wav", clip) if (tmp_path / "in").mkdir() is None else None
    (item,) = convert_folder(source.parent, tmp_path / "out", **QUICK)
    assert item.conversion.watermark.present
    marked(item.path)
    plain = convert_audio(clip, tmp_path / "plain.wav", options=EncodeOptions(watermark="none"), **QUICK)
    assert plain.watermark is None and "watermark" not in plain.report()
    assert not verify_watermark(plain.path).present


@needs_perth
def test_a_vc_of_ones_own_follows_its_own_configuration(configured: VC, clip: Audio, tmp_path: Path) -> None:
    use_watermark("none")
    try:
        made = configured.convert(clip, output=tmp_path / "a.wav", **QUICK)
        assert made.watermark.present
        marked(made.path, made.save(tmp_path / "b.wav"))
    finally:
        use_watermark("perth")


@needs_perth
def test_speech_engines(configured: VC, tmp_path: Path) -> None:
    engine, _ = get_speakers().engine("espeak")
    result = engine.synthesize(None, TEXT)
    assert result.success and result.watermark.present
    marked(result.path)
    use_watermark("none")
    try:
        plain = engine.synthesize(None, TEXT)
        assert plain.path != result.path and not verify_watermark(plain.path).present
    finally:
        use_watermark("perth")


@needs_perth
def test_streams(configured: VC, clip: Audio, tmp_path: Path) -> None:
    def pieces() -> Iterator[Audio]:
        for start in range(0, clip.frames, 4_000):
            yield Audio(clip.samples[start : start + 4_000], clip.rate)

    sink = FileSink(tmp_path / "stream.flac")
    assert sink.watermark is None
    pump = Pump(pieces(), [MemorySink(), sink])
    pump.start()
    assert pump.wait(60) and pump.wait_played(60) and sink.watermark.present
    playing = play(pieces(), save=tmp_path / "played.wav", wait=True)
    marked(tmp_path / "stream.flac", tmp_path / "played.wav", playing.save(tmp_path / "saved.wav"))
    marked(playing.take.save(tmp_path / "take.ogg"))
    play(pieces(), save=tmp_path / "plain.wav", wait=True, encode=EncodeOptions(watermark="none"))
    assert not verify_watermark(tmp_path / "plain.wav").present
    playing.stop()
    assert not verify_watermark(show_audio(clip).data).present  # what is shown may be anybody's recording


@needs_perth
def test_covers_mark_the_mix_and_no_stage(configured: VC, tmp_path: Path) -> None:
    song = RVCConfig().demo_dir / "song"
    given = {"vocals": song / "vocals.ogg", "accompaniment": song / "accompaniment.ogg", **QUICK}
    cover = make_cover(output=tmp_path / "cover.m4a", **given)
    marked(cover.path)
    assert cover.mix["true_peak_dbtp"] <= -1.0 and abs(cover.mix["lufs"] + 14) <= 0.5, "with the mark in it"
    assert cover.stems and not any(verify_watermark(stem).present for stem in cover.stems.values())


@needs_perth
def test_the_studio(configured: VC, clip: Audio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvc_spark.widgets.studio_takes.pair_picture", lambda source, result: Picture(b"\x89PNG", ""))
    house = House(tmp_path)
    monkeypatch.setattr(house, "pieces", lambda: iter([clip]))
    take = studio_in(house).speak().wait(60)
    assert isinstance(take, StudioTake)
    path = take.export(tmp_path / "take.flac")
    marked(path)
    assert json.loads(path.with_suffix(".json").read_text())["watermark"]["present"]


@needs_perth
def test_batches(configured: VC, clip: Audio, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_audio(tmp_path / "in" / "one.wav", clip, options=EncodeOptions(watermark="none"))
    rows = list(run_batch(tmp_path / "in", tmp_path / "out", BatchOptions(settings=QUICK)))
    marked(rows[0].file)
    assert rows[0].record["watermark"]["present"]
    plain = BatchOptions(settings=QUICK, watermark="none")
    (row,) = run_batch(tmp_path / "in", tmp_path / "out", plain)
    assert row.fresh and "watermark" not in row.record and not verify_watermark(row.file).present
    (row,) = run_batch(tmp_path / "in", tmp_path / "out", plain)
    assert not row.fresh


@needs_perth
def test_the_command_line(configured: VC, clip: Audio, tmp_path: Path, capsys, monkeypatch) -> None:
    source = write_audio(tmp_path / "one.wav", clip, options=EncodeOptions(watermark="none"))
    quick = ["--f0-method", "pm", "--index-rate", "0", "--watermark", "perth", "--json"]
    said = ["--engine", "espeak", "--watermark", "perth", "--json"]
    monkeypatch.setattr(demo, "_run_notebook", lambda source, target, parameters: target.write_text("{}"))
    monkeypatch.setattr("rvc_spark.widgets.plots.save_figure", lambda figure, path: path)
    for number, words in enumerate([
        ["convert", str(source), "-o", str(tmp_path / "0.wav"), *quick],
        ["speak", TEXT, "-o", str(tmp_path / "1.mp3"), "--engine", "espeak", *quick],
        ["speak", TEXT, "-o", str(tmp_path / "2.wav"), "--voice", "none", *said],
        ["speak", TEXT, "-o", str(tmp_path / "3.wav"), "--voice", "none", "--stream", *said],
        ["demo", TEXT, "-o", str(tmp_path / "demo"), "--watermark", "perth", "--json"],
    ]):  # fmt: skip
        assert main(words) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert report["watermark"]["present"], number
    marked(tmp_path / "0.wav", tmp_path / "1.mp3", tmp_path / "2.wav", tmp_path / "3.wav")
    marked(tmp_path / "demo" / "spoken.wav", tmp_path / "demo" / "converted.wav")
    use_watermark("perth")


@needs_perth
def test_standard_output_whole_and_streamed(configured: VC, capfdbinary) -> None:
    words = ["speak", TEXT, "-o", "-", "--voice", "none", "--engine", "espeak", "--watermark", "perth"]
    for more in ([], ["--stream"]):
        assert main([*words, *more]) == 0
        out, err = capfdbinary.readouterr()
        marked(out)
        assert b"watermark perth present" in err


# ---- and every path fails loudly -------------------------------------------------------------------------------------


def test_without_the_package_no_path_writes_and_the_work_is_not_begun(clip: Audio, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rvc_spark.perth_weights.package_folder", lambda package: None)
    vc = init_rvc(watermark="perth", tts="espeak")
    monkeypatch.setattr(vc, "_engines", lambda settings: pytest.fail("it began to convert"))
    try:
        for write in (
            lambda: vc.convert(clip, output=tmp_path / "a.wav"),
            lambda: say(TEXT, tmp_path / "a.wav", engine="espeak"),
            lambda: FileSink(tmp_path / "a.wav"),
            lambda: play(iter([clip]), save=tmp_path / "a.wav"),
            lambda: write_audio(tmp_path / "a.wav", clip),
        ):
            with pytest.raises(MissingPackageError, match="pip install resemble-perth"):
                write()
        assert list(tmp_path.iterdir()) == []
    finally:
        init_rvc()
        use_watermark(None)


@needs_perth
def test_a_stream_whose_mark_is_not_found_says_so_and_leaves_no_file(tmp_path: Path) -> None:
    time = np.arange(3 * 16_000) / 16_000
    chord = sum(0.1 * np.sin(2 * np.pi * hertz * time) for hertz in (220, 277, 330, 440, 554)).astype(np.float32)
    pieces = (Audio(chord[start : start + 4_000], 16_000) for start in range(0, len(chord), 4_000))
    pump = Pump(pieces, [MemorySink(), FileSink(tmp_path / "a.wav", EncodeOptions(watermark="perth"))])
    pump.start()
    with pytest.raises(WatermarkError, match="does not find it"):
        pump.wait(60)
        pump.wait_played(60)
    assert list(tmp_path.iterdir()) == []
