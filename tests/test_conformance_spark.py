"""The conformance tool on the Spark-TTS vectors kept in the project, and proof that it notices what is wrong there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_conformance import ROOT, TOOLS, Outcome, conformance, load, spoilt

SUBSET = ROOT / "tests" / "golden" / "spark_tts"
WHOLE = ROOT.parent / "shared" / "golden" / "spark_tts"
FIXTURES = tuple(json.loads((SUBSET / "meta.json").read_text(encoding="utf-8"))["fixtures"])
LARGE = "bicodec_full"  # 156 million weights; nothing else that the small codec has not
LARGEST_SUBSET = 2_500_000  # bytes in git
INPUTS = re.compile(
    r"(x|z|c)\d|wav\d?|mel|feat|ref_wav|semantic2|global2|u01_seed|in_.*|pcm_.*|chunk.*|.*margin\d?|w0\.cluster_size"
)
PER_FILE = {  # what INPUTS names, and is a result here
    "mel": {"mel"},
    "bicodec_tiny": {"wav", "wav2"},
    "wav2vec2_mix": set(),
    "speaker_encoder": set(),
}


def is_output(fixture: str, key: str) -> bool:
    """Whether a recorded array is a result (and not what a result is made from)."""
    return not INPUTS.fullmatch(key) or key in PER_FILE.get(fixture, ())


@pytest.fixture(scope="module")
def clean() -> Outcome:
    return conformance(SUBSET)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Outcome:
    """A run over a copy in which every recorded result is wrong, one fixture is missing and one is unknown."""
    folder = tmp_path_factory.mktemp("broken") / "spark_tts"
    shutil.copytree(SUBSET, folder, ignore=shutil.ignore_patterns(f"{LARGE}.npz"))
    for path in sorted(folder.glob("*.npz")):
        arrays = load(path)
        np.savez(path, **{key: spoilt(value) if is_output(path.stem, key) else value for key, value in arrays.items()})
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    del meta["fixtures"][LARGE]
    meta["fixtures"]["lungs"] = {}
    meta["fixtures"]["ref_clip"]["default"]["7"]["sha256"] = "0" * 64
    meta["fixtures"]["ref_clip"]["lengths"]["16000/6/320"] += 1
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    rewrite(folder / "prompts.json", "<|gender_1|>", "<|gender_2|>")
    rewrite(folder / "prompts.json", "<|end_content|><|start_global_token|>", "<|start_global_token|>")
    rewrite(folder / "triton.json", "[45, 445]", "[45, 444]")
    rewrite(folder / "triton.json", "[1, 208000]", "[1, 208001]")
    (folder / "stray.npz").write_bytes(b"")
    return conformance(folder)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("group", [*FIXTURES, "set"])
def test_the_library_matches_every_group(clean, group):
    assert clean.failed(group) == {}
    assert clean.groups[group]["checks"] > 0


def test_a_clean_run_exits_with_zero(clean):
    assert clean.code == 0, clean.errors


@pytest.mark.parametrize("group", FIXTURES)
def test_a_wrong_result_fails_its_group(broken, group):
    assert broken.code == 1
    assert broken.failed(group)


@pytest.mark.parametrize("fixture", sorted(path.stem for path in SUBSET.glob("*.npz") if path.stem != LARGE))
def test_every_recorded_array_is_compared(broken, fixture):
    """Each array was spoilt, so each must be told by its name."""
    group = "triton" if fixture == "crossfade" else fixture
    told = {re.split("[, ]", one["quantity"])[0] for one in broken.groups[group]["failures"]}
    assert [key for key in load(SUBSET / f"{fixture}.npz") if is_output(fixture, key) and key not in told] == []


def test_what_a_set_can_hide_is_told(broken):
    told = broken.failed("set")
    assert any("lungs" in key for key in told) and any("stray.npz" in key for key in told)
    assert "is not in meta.json" in str(broken.failed(LARGE))
    assert not any("unchecked arrays" in reason for reason in told.values())  # spoilt ones are looked at all the same


def test_wrong_words_and_schedules_are_told(broken):
    words, server, clip = (set(broken.failed(group)) for group in ("prompts", "triton", "ref_clip"))
    assert {"prompts clone 0", "prompts control 1", "prompts gender male"} <= words
    assert "triton padding 2" in server and any("schedule of 900 tokens" in key for key in server)
    assert {"ref_clip 7, sha256", "ref_clip 16000/6/320"} <= clip


def test_an_array_that_nothing_compares_is_told(tmp_path):
    shutil.copytree(SUBSET, tmp_path / "set", ignore=shutil.ignore_patterns(f"{LARGE}.npz"))
    arrays = load(SUBSET / "mel.npz")
    np.savez(tmp_path / "set" / "mel.npz", **arrays, hum=np.ones(3))
    outcome = conformance(tmp_path / "set")
    assert any("hum" in reason for reason in outcome.failed("set").values())
    assert "FileNotFoundError" in str(outcome.failed(LARGE))


def test_one_group_can_be_asked_for():
    outcome = conformance(SUBSET, "--only", "fsq", "--only", "triton")
    assert (outcome.code, sorted(outcome.groups)) == (0, ["fsq", "triton"])


def test_half_precision_is_a_usage_error():
    outcome = conformance(SUBSET, "--dtype", "float16")
    assert outcome.code == 2
    assert "float32" in outcome.errors


def test_the_kept_set_stays_small_and_says_its_licence():
    assert sum(path.stat().st_size for path in SUBSET.iterdir()) <= LARGEST_SUBSET
    assert "licence" in (SUBSET / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.skipif(not WHOLE.is_dir(), reason="the whole set of vectors is not beside this checkout")
def test_the_library_matches_the_whole_set():
    outcome = conformance(WHOLE)
    assert {key: reason for group in outcome.groups for key, reason in outcome.failed(group).items()} == {}
    assert outcome.code == 0


@pytest.mark.skipif(not WHOLE.is_dir(), reason="the whole set of vectors is not beside this checkout")
def test_the_kept_set_is_what_the_tool_makes_of_the_whole(tmp_path):
    made = tmp_path / "spark_tts"
    subprocess.run(
        [sys.executable, str(TOOLS / "golden_subset_spark.py"), str(WHOLE), str(made)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert sorted(path.name for path in made.iterdir()) == sorted(path.name for path in SUBSET.iterdir())
    for path in made.iterdir():
        if path.suffix != ".npz":
            assert path.read_bytes() == (SUBSET / path.name).read_bytes(), path.name
            continue
        ours, theirs = load(SUBSET / path.name), load(path)
        assert ours.keys() == theirs.keys()
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs), path.name
