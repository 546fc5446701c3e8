"""The command line: every verb on the embedded default, machine output, exit codes, standard input and output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvc_spark.audio import Audio, encode_audio, read_audio, write_audio
from rvc_spark.cli import main, parser
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import RVCConfig

EXAMPLE = RVCConfig().demo_dir / "examples" / "source_awb.wav"


def run(capsys, *words: str) -> tuple[int, list[dict], str]:
    """Exit code, JSON objects of standard output, standard error."""
    code = main(words)
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture
def clip(tmp_path) -> Path:
    """One second, so that conversions are quick."""
    sound = read_audio(EXAMPLE)
    return write_audio(tmp_path / "clip.wav", Audio(sound.samples[4_000:20_000], sound.rate))


def test_convert_writes_the_file_and_reports(capsys, clip, tmp_path):
    target = tmp_path / "out.flac"
    code, (report,), _ = run(
        capsys, "convert", str(clip), "-o", str(target), "--key", "5", "--f0-method", "pm", "--json"
    )
    assert code == 0
    assert read_audio(target).frames == 32_000 == report["samples"]
    assert report["engines"]["pitch"]["value"] == "pm"
    assert report["settings"]["key"] == 5


def test_convert_for_people_says_engines_and_speed(capsys, clip, tmp_path):
    assert main(["convert", str(clip), "-o", str(tmp_path / "out.wav"), "--f0-method", "pm"]) == 0
    out = capsys.readouterr().out
    assert "real-time factor" in out
    assert "device=" in out
    assert "index=added_IVF38" in out


def test_standard_input_to_standard_output(clip):
    command = [sys.executable, "-m", "rvc_spark", "convert", "-", "-o", "-", "--format", "flac", "--f0-method", "pm"]
    done = subprocess.run(command, input=clip.read_bytes(), capture_output=True, timeout=300, check=True)
    assert read_audio(io.BytesIO(done.stdout)).frames == 32_000
    assert b"real-time factor" in done.stderr


def test_folder_keeps_names_apart_and_goes_on_after_a_bad_file(capsys, clip, tmp_path):
    folder = tmp_path / "in"
    (folder / "deeper").mkdir(parents=True)
    sound = read_audio(clip)
    short = Audio(sound.samples[:4_000], sound.rate)
    for name in ("same.wav", "same.flac", "deeper/same.wav"):
        write_audio(folder / name, short)
    (folder / "broken.wav").write_bytes(b"RIFF but no more")
    (folder / "notes.txt").write_text("not a sound")
    code, reports, err = run(
        capsys, "convert", str(folder), "-o", str(tmp_path / "out"), "--format", "flac", "--f0-method", "pm", "--json"
    )
    assert code == 1
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["deeper/same.flac", "same_flac.flac", "same_wav.flac"]
    assert [Path(report["source"]).name for report in reports if "error" in report] == ["broken.wav"]
    assert "broken.wav" in err


def test_speak(capsys, tmp_path):
    code, (report,), _ = run(
        capsys, "speak", "One. Two.", "-o", str(tmp_path / "said.wav"), "--speed", "300", "--f0-method", "pm", "--json"
    )
    assert code == 0
    assert report["sentences"] == ["One.", "Two."]
    assert report["engines"]["tts"]["value"] == "espeak"
    assert float(report["engines"]["key"]["value"]) > 3  # the embedded speaker is much lower than the voice
    assert np.abs(read_audio(tmp_path / "said.wav").samples).max() > 0.05


def test_voices_lists_damaged_ones_too(capsys, tmp_path, monkeypatch):
    (tmp_path / "broken.pth").write_bytes(b"<html>not found</html>")
    monkeypatch.setenv("weight_root", str(tmp_path))
    code, reports, _ = run(capsys, "voices", "--json")
    assert code == 0
    by_name = {report["name"]: report for report in reports}
    assert by_name["demo"]["rate"] == 32_000
    assert by_name["demo"]["index"].startswith("added_IVF38")
    assert "web page" in by_name["broken"]["error"]


def test_doctor_finds_nothing_broken_here(capsys):
    code, findings, _ = run(capsys, "doctor", "--json")
    assert code == 0, [finding for finding in findings if finding["state"] == "broken"]
    states = {finding["what"]: finding["state"] for finding in findings}
    assert states["demo voice"] == states["embedded speech"] == states["pitch: pm"] == "ok"


def test_assets_list_names_source_hash_and_licence(capsys):
    code, reports, _ = run(capsys, "assets", "list", "rmvpe", "--json")
    assert code == 0
    assert reports[0]["sha256"].startswith("6d62215f")
    assert reports[0]["licence"] == "MIT"


def test_assets_get_offline_opens_no_socket_and_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RVC_ROOT", str(tmp_path))
    monkeypatch.setattr("socket.socket", None)
    code, (report,), err = run(capsys, "assets", "get", "rmvpe", "--offline", "--json")
    assert code == 9
    assert "offline" in report["error"]
    assert "rmvpe" in err


def test_a_voice_that_is_not_there_offers_the_nearest(capsys, clip):
    code, (report,), err = run(capsys, "convert", str(clip), "--voice", "demmo", "--json")
    assert code == 6
    assert report["kind"] == "VoiceNotFoundError"
    assert "Did you mean demo" in err


def test_exit_codes_tell_kinds_of_trouble_apart(capsys, clip, tmp_path):
    assert main(["convert", str(tmp_path / "none.wav")]) == 3
    assert main(["convert", str(clip), "--key", "99"]) == 2
    assert main(["speak", "   "]) == 4
    assert main(["convert", str(clip), "-o", str(clip)]) == 11
    assert main(["convert", str(clip), "-o", str(tmp_path / "x.xyz")]) == 11
    assert "Traceback" not in capsys.readouterr().err


def test_every_setting_is_an_option():
    convert = parser().parse_args(["convert", "a.wav", "--auto-key", "voice", "--rms-mix-rate", "0.5"])
    assert convert.auto_key == "voice"
    assert convert.rms_mix_rate == 0.5
    help_text = (
        next(action for action in parser()._actions if action.dest == "command").choices["convert"].format_help()
    )
    for name in ConversionSettings.names():
        assert f"--{name.replace('_', '-')}" in help_text


def test_encoded_bytes_are_what_a_pipe_gets(clip):
    assert read_audio(encode_audio(read_audio(clip))).frames == read_audio(clip).frames
