"""rvc-spark cover: a preview of the shipped song with the demo voice, explaining, ranges, refusals, pruning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rvc_spark.audio import read_audio
from rvc_spark.cli import main, parser
from rvc_spark.cli_cover import cover_settings
from rvc_spark.errors import ConfigError
from rvc_spark.rvc_config import RVCConfig

SONG = RVCConfig().demo_dir / "song"
STEMS = ("--vocals", str(SONG / "vocals.ogg"), "--accompaniment", str(SONG / "accompaniment.ogg"))
SHORT = ("--preview", "0:02", "--preview-seconds", "1", "--set", "f0_method=pm")


def run(capsys, *words: str) -> tuple[int, list[dict], str]:
    """Exit code, JSON objects of standard output, standard error."""
    code = main(words)
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RVC_SPARK_COVERS", str(tmp_path / "covers"))
    return tmp_path / "covers"


def test_made_explained_changed_and_pruned(capsys, tmp_path: Path, own_store: Path) -> None:
    target = str(tmp_path / "cover.flac")
    code, (told,), _ = run(capsys, "cover", *STEMS, *SHORT, "-o", target, "--explain", "--json")
    assert code == 0 and {row["state"] for row in told["stages"]} == {"to be made", "skipped"}
    assert not Path(target).exists()
    code, (report,), _ = run(capsys, "cover", *STEMS, *SHORT, "-o", target, "--json")
    assert code == 0 and report["path"] == target and report["seconds"] == 1.0
    assert report["mix"]["lufs"] == pytest.approx(-14, abs=0.3) and read_audio(target).channels == 2
    assert report["notes"]["lead voice: pitch"]["value"] == "pm"
    code, (report,), _ = run(capsys, "cover", *STEMS, *SHORT, "-o", target, "--voice-gain", "-3", "--json")
    assert [row["name"] for row in report["stages"] if row["state"] == "made"] == ["mix"]
    assert main(["cover", *STEMS, *SHORT, "-o", target, "--voice-gain", "-3"]) == 0
    out = capsys.readouterr().out
    assert "-14.0 LUFS" in out and "0 stages made, 7 kept" in out and "room: skipped" in out
    assert main(["cover", *STEMS, *SHORT, "-o", target, "--explain"]) == 0
    out = capsys.readouterr().out
    assert "to be made" not in out and "made before" in out
    code, (pruned,), _ = run(capsys, "cover", "--prune", "--json")
    assert code == 0 and pruned["removed"] == 0 and pruned["kept"] == 8
    code, (pruned,), _ = run(capsys, "cover", "--prune", "all", "--json")
    assert pruned["kept"] == 0 and pruned["removed"] == 8 and list(own_store.glob("*.wav")) == []


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["cover"], 2, "neither a song nor vocals"),
        (["cover", "none.mp3"], 9, "assets get demucs; or give the stems"),
        (["cover", "none.mp3", "--vocals-only", "-o", "x.flac"], 3, "none.mp3"),
        (["cover", "--vocals-only"], 2, "--vocals-only is about SONG"),
        (["cover", *STEMS, "--voice", "nobody"], 6, "nobody"),
        (["cover", *STEMS, "--quality", "great"], 2, "quality='great'"),
        (["cover", *STEMS, "--ranges", "3"], 2, "is not START-END"),
        (["cover", *STEMS, "--set", "reverb"], 2, "has no '='"),
        (["cover", *STEMS, "--set", "reverb=9"], 2, "reverb=9 is outside 0 to 1"),
        (["cover", *STEMS, "-o", "song.xyz"], 11, "suffix"),
        (["cover", str(SONG / "vocals.ogg"), "--prune"], 2, "makes no cover"),
        (["cover", str(SONG / "vocals.ogg"), *STEMS], 2, "both its stems"),
    ],
)  # fmt: skip
def test_refusals_have_their_codes_and_say_why(
    capsys, tmp_path: Path, monkeypatch, words: list[str], code: int, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RVC_ROOT", str(tmp_path / "home"))
    (tmp_path / "home" / "assets").mkdir(parents=True)
    (tmp_path / "home" / "assets" / "demo").symlink_to(SONG.parent)
    if "--vocals-only" not in words:
        (tmp_path / "none.mp3").write_bytes(b"not looked into before there is something to separate it with")
    assert main([*words, "--json"]) == code
    assert told in capsys.readouterr().out


def test_options_become_settings() -> None:
    words = ["cover", "song.mp3", "--ranges", "12.5-30,1:05-1:20", "--ranges", "2:00-2:10", "--key", "-3", "--dereverb"]
    words += ["--set", "gate.hold=0.2", "--set", "index-rate=0.5", "--preview", "1:30", "--backing", "convert"]
    settings = cover_settings(parser().parse_args(words))
    assert settings.ranges == ((12.5, 30.0), (65.0, 80.0), (120.0, 130.0))
    assert (settings.key, settings.dereverb, settings.preview, settings.backing) == (-3.0, True, 90.0, "convert")
    assert (settings.gate.hold, settings.conversion.index_rate) == (0.2, 0.5)
    for wrong in ("5-", "a-b", "-5", "nan-nan"):
        with pytest.raises(ConfigError):
            cover_settings(parser().parse_args(["cover", "x", f"--ranges={wrong}"]))
    with pytest.raises(SystemExit):
        parser().parse_args(["cover", "x", "--preview", "soon"])


def test_help_names_every_option(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["cover", "--help"])
    out = capsys.readouterr().out
    for word in ("--accompaniment-key", "--explain", "--prune", "--backing-voice", "--ranges", "htdemucs_ft"):
        assert word in out
