"""Copy part of a folder of Spark-TTS vectors into the project: small enough for git, and still every group of it.

    python tools/golden_subset_spark.py ../golden/spark_tts          into tests/golden/spark_tts

Left out are weights that the rule gives anyway, and further cases of what other cases show. Cases keep the numbers
their arrays are named by (`case` in meta.json and triton.json); everything kept is kept bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KEPT_CASES = {"residual_fsq": (0, 1, 2), "ecapa": (0,), "crossfade": (3, 4)}
KEPT_NAMES = {"volume": ("quiet", "zeros", "sparse", "f32"), "load_audio": ("44k_stereo", "8k_mono")}
KEPT_WEIGHTS = ("wav2vec2_tiny", "wavegen_w1")  # the first is an input; the second shows that the rule is followed
LIMIT_BYTES = 2_500_000  # in git, for good
LICENCE = """These vectors are the output of a program run on random weights and synthetic signals; they contain no
third-party recording, no pretrained weight and no source code. They are distributed under the licence of this project
(MIT, see LICENSE at its top). Copied from a larger set of the same layout; see README.md, written for the whole set.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with meta.json")
    parser.add_argument("target", type=Path, nargs="?", default=Path("tests/golden/spark_tts"), help="new or replaced")
    return parser.parse_args(arguments)


def keep_cases(cases: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The kept cases of a fixture, each with its number."""
    return [{**case, "case": number} for number, case in enumerate(cases) if number in KEPT_CASES[name]]


def keeps_array(name: str) -> Callable[[str], bool]:
    """Whether an array of the fixture's file is kept."""
    if name in KEPT_NAMES:
        return lambda key: key.partition("_")[2] in KEPT_NAMES[name]
    if name in KEPT_CASES:
        return lambda key: case_of(key) in KEPT_CASES[name]
    return lambda key: True


def case_of(key: str) -> int:
    """The case an array belongs to: `chunk3_1` and `w3.weight` begin with its number, `layer13` ends in it."""
    found = re.match(r"(?:chunk|w)(\d)[_.]", key) or re.match(r".*(\d)$", key)
    return int(found[1])


def write_subset(source: Path, target: Path) -> int:
    """Write the kept part under `target`; returns the bytes written."""
    meta = json.loads((source / "meta.json").read_text(encoding="utf-8"))
    triton = json.loads((source / "triton.json").read_text(encoding="utf-8"))
    fixtures = meta["fixtures"]
    for name in KEPT_CASES.keys() & fixtures.keys():
        fixtures[name] = keep_cases(fixtures[name], name)
    for name, kept in KEPT_NAMES.items():
        fixtures[name] = {key: value for key, value in fixtures[name].items() if key in kept}
    triton["crossfade"] = keep_cases(triton["crossfade"], "crossfade")
    (target / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    (target / "triton.json").write_text(json.dumps(triton) + "\n", encoding="utf-8")
    for path in sorted(source.glob("*.npz")):
        copy_arrays(path, target / path.name, keeps_array(path.stem))
    for name in (*(f"{stem}.safetensors" for stem in KEPT_WEIGHTS), "prompts.json", "README.md"):
        shutil.copyfile(source / name, target / name)
    (target / "LICENSE").write_text(LICENCE, encoding="utf-8")
    return sum(path.stat().st_size for path in target.iterdir())


def copy_arrays(source: Path, target: Path, kept: Callable[[str], bool]) -> None:
    """Copy an array file, byte for byte if all of it is kept."""
    with np.load(source, allow_pickle=False) as archive:
        names = [name for name in archive.files if kept(name)]
        if len(names) == len(archive.files):
            shutil.copyfile(source, target)
        else:
            np.savez_compressed(target, **{name: archive[name] for name in names})


def main(arguments: list[str] | None = None) -> int:
    """Write the subset; 1 if it is too large for git."""
    options = parse(arguments)
    fresh = options.target.with_name(options.target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    size = write_subset(options.source, fresh)
    if size > LIMIT_BYTES:
        sys.stderr.write(f"The part takes {size} bytes, more than {LIMIT_BYTES}. Keep fewer cases.\n")
        shutil.rmtree(fresh)
        return 1
    shutil.rmtree(options.target, ignore_errors=True)
    os.replace(fresh, options.target)
    sys.stdout.write(f"{size} bytes in {options.target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
