"""rvc-spark speak, enroll and engines as a user types them, on the embedded engine and a tiny Spark-TTS checkpoint."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rvc_spark.audio import Audio, read_audio, write_audio
from rvc_spark.cli import main
from rvc_spark.rvc_init import init_rvc

TEXT = "Hello there, this is a sentence. And this is another one, which is a little longer than the first."


@pytest.fixture(autouse=True)
def place(spark_folder, tmp_path, monkeypatch):
    """A checkpoint, nobody at the port, and files of a test's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TRITON_SERVER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("RVC_SPARK_SPARK", str(spark_folder))
    monkeypatch.setenv("RVC_SPARK_TEMP", str(tmp_path / "temp"))
    monkeypatch.chdir(tmp_path)
    yield
    init_rvc()  # ends the engines that were loaded


@pytest.fixture
def recording(tmp_path) -> Path:
    time = np.arange(4 * 16_000) / 16_000
    tone = sum(np.sin(2 * np.pi * 120 * number * time) / number for number in range(1, 9))
    return write_audio(tmp_path / "me.wav", Audio((0.2 * tone).astype(np.float32), 16_000))


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, list[dict], str]:
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def test_engines_tells_what_each_lacks_and_who_would_speak(capsys):
    code, reports, _ = run(capsys, "engines")
    assert code == 0
    assert {report["engine"]: report["state"] for report in reports} == {
        "triton": "missing", "spark": "ready", "espeak": "ready",
    }  # fmt: skip
    assert "no Triton server at" in reports[0]["detail"] and "CC BY-NC-SA" in reports[1]["detail"]
    assert main(["engines"]) == 0
    assert "would speak" in capsys.readouterr().out


def test_enrolled_voices_speak_and_streams_are_the_same_sound(capsys, recording):
    code, (report,), _ = run(capsys, "enroll", str(recording), "--engine", "spark", "-o", "me.safetensors")
    assert code == 0 and Path("me.safetensors").stat().st_size < 2_000
    said = ["speak", TEXT, "--engine", "spark", "--reference", "me.safetensors", "--seed", "4", "--voice", "none"]
    code, (whole,), _ = run(capsys, *said, "-o", "whole.wav")
    assert code == 0 and whole["engines"]["tts"]["value"] == "spark"
    code, (stream,), _ = run(capsys, *said, "--stream", "--first-chunk", "0.2", "-o", "stream.wav")
    assert code == 0 and 0 < stream["first_sound"] <= stream["elapsed"]
    np.testing.assert_allclose(read_audio("whole.wav").samples, read_audio("stream.wav").samples, atol=2 / 32_768)
    assert "CC BY-NC-SA 4.0" in soundfile.SoundFile("stream.wav").comment


def test_a_stream_to_a_pipe_is_a_wav(recording):
    command = [
        sys.executable, "-m", "rvc_spark", "speak", TEXT, "--engine", "spark", "--reference", str(recording),
        "--seed", "4", "--voice", "none", "--stream", "-o", "-",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=120, check=True, env=dict(os.environ))
    assert done.stdout.startswith(b"RIFF\xff\xff\xff\xff")
    samples, rate = soundfile.read(io.BytesIO(done.stdout[:4] + (2**31).to_bytes(4, "little") + done.stdout[8:]))
    assert rate == 16_000 and samples.std() > 0.01
    head, data = done.stdout.split(b"data\xff\xff\xff\xff", 1)
    assert len(samples) * 2 == len(data) and b"CC BY-NC-SA 4.0" in head
    assert b"first sound after" in done.stderr


def test_speech_of_spark_is_converted_like_any_other(capsys, recording):
    code, (report,), _ = run(
        capsys, "speak", TEXT, "--engine", "spark", "--reference", str(recording), "--seed", "4", "--f0-method", "pm",
        "-o", "she.flac",
    )  # fmt: skip
    assert code == 0 and report["engines"]["tts"]["value"] == "spark" and report["rate"] == 32_000
    assert "CC BY-NC-SA 4.0" in soundfile.SoundFile("she.flac").comment


def test_the_converted_stream_is_as_long_as_the_whole_and_comes_in_sentences(capsys):
    said = ["speak", "One sentence. Another one. The third.", "--engine", "espeak", "--f0-method", "pm"]
    code, (whole,), _ = run(capsys, *said, "-o", "whole.wav")
    assert code == 0
    code, (stream,), _ = run(capsys, *said, "--stream", "-o", "stream.wav")
    assert code == 0 and stream["first_sound"] < stream["elapsed"]
    assert read_audio("stream.wav").frames == whole["samples"] and read_audio("stream.wav").rate == 32_000


def test_the_embedded_engine_without_a_voice(capsys):
    code, (report,), _ = run(capsys, "speak", "One.", "--voice", "none", "--engine", "espeak", "--speed", "300")
    assert code == 0 and report["path"] == "speech.wav" and read_audio("speech.wav").rate == 22_050
    assert soundfile.SoundFile("speech.wav").comment == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["speak", "x", "--engine", "triton"], 10, "no Triton server at"),
        (["speak", "x", "--engine", "bogus"], 2, "'bogus' is unknown"),
        (["speak", "x", "--stream", "--engine", "bogus"], 2, "'bogus' is unknown"),
        (["speak", "<|task_tts|>", "--engine", "spark", "--voice", "none"], 4, "obey as a command"),
        (["speak", "x", "--engine", "spark", "--context", "some", "--voice", "none"], 2, "whole number"),
        (["speak", "x", "--engine", "spark", "--context", "-5", "--voice", "none"], 2, "exact"),
        (["speak", "x", "--engine", "spark", "--gender", "robot", "--voice", "none"], 2, "female, male"),
        (["speak", "x", "--engine", "espeak", "--speed", "fast", "--voice", "none"], 2, "whole number"),
        (["speak", "x", "--engine", "espeak", "--gender", "male", "--voice", "none"], 2, "has no setting 'gender'"),
        (["speak", "x", "--engine", "spark", "--reference", "none.wav", "--voice", "none"], 10, "none.wav"),
        (["speak", "x", "--engine", "spark", "--transcript", "y", "--voice", "none"], 2, "without a recording"),
        (["enroll", "none.wav", "--engine", "spark"], 10, "none.wav"),
        (["enroll", "none.wav", "--engine", "espeak", "--transcript", "x"], 2, "transcript"),
    ],
)
def test_what_is_refused_says_why(capsys, arguments, code, words):
    found, _, err = run(capsys, *arguments)
    assert found == code and words in err.replace("\n", " ")
    assert not list(Path().glob("*.wav"))


def test_without_a_checkpoint_the_way_to_get_it_is_told(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RVC_SPARK_SPARK", str(tmp_path / "nowhere"))
    code, _, err = run(capsys, "speak", "x", "--engine", "spark", "--voice", "none")
    assert code == 9 and "rvc-spark assets get spark --accept CC-BY-NC-SA-4.0 --unpinned hub" in err.replace("\n", " ")
