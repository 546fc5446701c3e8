"""The conformance tool on the vectors kept in the project, and proof that it notices whatever is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tools"
SUBSET = ROOT / "tests" / "golden" / "rvc"
WHOLE = ROOT.parent / "shared" / "golden" / "rvc"
GROUPS = ("voices", "sine", "rmvpe", "content", "functions", "pitch", "pipeline", "hostile")
GIVEN = ("seed.seed",)  # recorded outputs that a run takes as inputs
LARGE = "pipeline/p16_"  # the one case of the kept set with full-size networks
LARGEST_SUBSET = 9_000_000  # bytes in git


@dataclass(frozen=True)
class Outcome:
    """Exit code, groups by name, and what went to standard error."""

    code: int
    groups: dict[str, dict[str, Any]]
    errors: str

    def failed(self, group: str) -> dict[str, str]:
        """Quantity -> reason of everything that failed in a group."""
        return {f"{one['case']} {one['quantity']}": one["reason"] for one in self.groups[group]["failures"]}


def conformance(folder: Path, *options: str) -> Outcome:
    """Run the tool as anybody would."""
    done = subprocess.run(
        [sys.executable, str(TOOLS / "conformance.py"), str(folder), "--json", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    document = json.loads(done.stdout) if done.stdout else {"groups": []}
    assert document.get("ok", False) is (done.returncode == 0)
    return Outcome(done.returncode, {group["name"]: group for group in document["groups"]}, done.stderr)


def rewrite(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Store arrays and make the index agree, so that hashes do not give the change away."""
    path = folder / name
    np.savez(path, **arrays)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    data = path.read_bytes()
    index["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    index["arrays"][name] = {key: [str(value.dtype), list(value.shape)] for key, value in arrays.items()}
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def is_output(name: str, key: str) -> bool:
    """Whether a recorded array is a result (and not what a result is made from)."""
    return "in." not in key and not key.endswith(GIVEN) and name != "pipeline/stub_encoder.npz"


def spoilt(value: np.ndarray) -> np.ndarray:
    """The same shape and type, every element far beyond any tolerance."""
    if value.dtype == bool:
        return ~value
    if value.dtype == np.int16:
        return value ^ 0x0FFF  # up to 4095 steps
    if np.issubdtype(value.dtype, np.integer):
        return np.where(value > 3, value - 3, value + 3).astype(value.dtype)
    with np.errstate(over="ignore"):  # the distance of a missing neighbour is the largest float32
        return (value * 1.1 + 0.07 + 2.0 * (np.abs(value).max(initial=0) > 20)).astype(value.dtype)


@pytest.fixture(scope="module")
def clean() -> Outcome:
    """A run over the whole set where it lies beside this checkout, which holds the kept one (see the last test)."""
    return conformance(WHOLE if WHOLE.is_dir() else SUBSET)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Outcome:
    """A run over a copy in which every recorded result is wrong and one hostile file is missing.

    The conversion through full-size networks is left out: it has no array that the others have not, and takes long.
    """
    folder = tmp_path_factory.mktemp("broken") / "rvc"
    shutil.copytree(SUBSET, folder)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    index["cases"] = [case for case in index["cases"] if not case["id"].startswith(LARGE)]
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
    for path in sorted(folder.rglob("*.npz")):
        name = path.relative_to(folder).as_posix()
        arrays = load(path)
        rewrite(folder, name, {key: spoilt(value) if is_output(name, key) else value for key, value in arrays.items()})
    (folder / "hubert" / "hostile_fairseq.pt").unlink()
    return conformance(folder)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", [*GROUPS, "files"])
def test_the_library_matches_every_group(clean, group):
    assert clean.failed(group) == {}
    assert clean.groups[group]["cases"] > 0


def test_a_clean_run_exits_with_zero(clean):
    assert clean.code == 0, clean.errors


def test_every_measured_error_has_a_tolerance(clean):
    for name, group in clean.groups.items():
        for one in group["measured"]:
            assert one["error"] >= 0
            assert one["tolerance"] or one["error"] == 0, (name, one)


@pytest.mark.parametrize("group", GROUPS)
def test_a_wrong_result_fails_its_group(broken, group):
    assert broken.code == 1
    assert broken.failed(group)


def test_every_recorded_array_is_compared(broken):
    """Each array was spoilt, so each must be told by its name, by a case that names its file."""
    index = json.loads((SUBSET / "index.json").read_text(encoding="utf-8"))
    failures = [one for group in GROUPS for one in broken.groups[group]["failures"]]
    told = {(one["case"], re.split("[, ]", one["quantity"])[0]) for one in failures}
    for name, arrays in index["arrays"].items():
        if name.startswith(LARGE):
            continue
        cases = [case["id"] for case in index["cases"] if name in case["files"]]
        silent = [key for key in arrays if is_output(name, key) and not any((case, key) in told for case in cases)]
        assert silent == [], name


def test_a_missing_hostile_file_is_told(broken):
    assert any("hostile_fairseq.pt" in reason for reason in broken.failed("hostile").values())


def copy_part(source: Path, target: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    """A small set: the cases of those ids with their files. Returns its index, not yet written."""
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    index["cases"] = [case for case in index["cases"] if case["id"] in wanted]
    names = {name for case in index["cases"] for name in case["files"]}
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    index["files"] = {name: told for name, told in index["files"].items() if name in names}
    index["arrays"] = {name: told for name, told in index["arrays"].items() if name in names}
    return index


def test_what_a_set_can_hide_is_told(tmp_path):
    """An array nobody compares, a case of an unknown kind or function, a changed byte, a file that is not listed."""
    index = copy_part(SUBSET, tmp_path, ("functions/coarse", "functions/rms/c", "functions/highpass"))
    index["cases"].append({"id": "lungs/one", "kind": "lungs", "files": []})
    index["cases"].append({"id": "functions/breath", "kind": "function", "files": ["functions/rms.npz"]})
    index["cases"][0]["files"].append("functions/gone.npz")
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    coarse = load(tmp_path / "functions" / "coarse.npz")
    added = {"gaps.key7.coarse": coarse["gaps.key5.coarse"], "hum": np.ones(3)}
    rewrite(tmp_path, "functions/coarse.npz", coarse | added)
    (tmp_path / "functions" / "stray.npz").write_bytes(b"")
    with (tmp_path / "functions" / "highpass.npz").open("ab") as file:
        file.write(b"\0")
    outcome = conformance(tmp_path, "--only", "functions", "--only", "files")
    told = {**outcome.failed("functions"), **outcome.failed("files")}
    assert outcome.code == 1
    for expected in (
        "hum",
        "gaps.key7.coarse",  # compared, and wrong: the key 7 of a set is not known to the tool beforehand
        "silence/out",  # its case was taken out of the index, so nothing compares it
        "lungs/one",
        "functions/breath case",
        "functions/gone.npz",
        "functions/stray.npz",
        "highpass.npz, sha256",
    ):
        assert any(expected in key or expected in reason for key, reason in told.items()), expected


def test_a_recipe_that_gives_other_numbers_is_refused(tmp_path):
    index = copy_part(SUBSET, tmp_path, ("rmvpe/rmvpe_tiny/noise",))
    recipes = json.loads((tmp_path / "recipes.json").read_text(encoding="utf-8"))
    recipes["rmvpe_tiny"]["seed"] += 1
    (tmp_path / "recipes.json").write_text(json.dumps(recipes), encoding="utf-8")
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    outcome = conformance(tmp_path, "--only", "rmvpe")
    assert outcome.code == 1
    assert any("regenerated to hash" in reason for reason in outcome.failed("rmvpe").values())


def test_code_that_runs_from_a_file_is_seen(tmp_path):
    """The canary check itself, with an opener that does what a careless loader would let a file do."""
    opener = tmp_path / "opener.py"
    opener.write_text("import os, sys\nos.mkdir('RVC_PICKLE_CANARY_EXECUTED')\nprint('refused')\n", encoding="utf-8")
    program = (
        "import sys; from pathlib import Path; from conformance_checks import hostile, record\n"
        "hostile.OPENER = Path(sys.argv[1]); group = record.Group('hostile')\n"
        "hostile.check_file(Path('some.pth'), record.Recorder(group, 'case'))\n"
        "print(*(check.reason for check in group.failures), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(opener)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{TOOLS}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "code in the file ran" in done.stdout
    assert not (tmp_path / "RVC_PICKLE_CANARY_EXECUTED").exists()


def test_a_folder_without_an_index_is_a_usage_error(tmp_path):
    outcome = conformance(tmp_path)
    assert outcome.code == 2
    assert "index.json" in outcome.errors


def test_nothing_to_check_is_not_success(tmp_path):
    empty = {"cases": [], "arrays": {}, "files": {}}
    (tmp_path / "index.json").write_text(json.dumps(empty), encoding="utf-8")
    assert conformance(tmp_path).code == 1


def test_the_kept_set_stays_small_and_says_its_licence():
    assert sum(path.stat().st_size for path in SUBSET.rglob("*") if path.is_file()) <= LARGEST_SUBSET
    assert "licence" in (SUBSET / "LICENSE").read_text(encoding="utf-8")
    kinds = {case["kind"] for case in json.loads((SUBSET / "index.json").read_text(encoding="utf-8"))["cases"]}
    assert {"voice", "voice_variant", "hostile", "sine", "rmvpe", "rmvpe_decode", "hubert", "function", "f0"} <= kinds


@pytest.mark.skipif(not WHOLE.is_dir(), reason="the whole set of vectors is not beside this checkout")
def test_the_kept_set_is_what_the_tool_makes_of_the_whole(tmp_path):
    subprocess.run(
        [sys.executable, str(TOOLS / "golden_subset.py"), str(WHOLE), str(tmp_path / "rvc")],
        check=True,
        capture_output=True,
        timeout=60,
    )
    places = (SUBSET, tmp_path / "rvc")
    kept, made = (json.loads((place / "index.json").read_text(encoding="utf-8")) for place in places)
    assert kept["cases"] == made["cases"]
    assert kept["arrays"] == made["arrays"]
    for name in kept["arrays"]:
        ours, theirs = (load(place / name) for place in places)
        assert all(ours[key].tobytes() == theirs[key].tobytes() for key in theirs), name
