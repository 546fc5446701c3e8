"""Copy part of a folder of golden vectors into the project: small enough for git, and still one case of every group.

    python tools/golden_subset.py ../golden/rvc                     into tests/golden/rvc
    python tools/golden_subset.py ../golden/rvc --cases "sine/*"    another choice (shell patterns of case ids)

Array files of which only some cases are kept are rewritten with those cases' arrays; everything else is copied byte for
byte. index.json keeps the kept cases, and tells hash, size and layout of the files as they now are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

CHOSEN = (  # every group, every form a file can have; of the full-size networks one conversion that holds two of them
    "voices/v1_f0_40k",
    "voices/v2_f0_40k",
    "voices/v1_nof0_48k",
    "voices/variants/no_version_no_f0",
    "voices/variants/with_enc_q",
    "voices/variants/old_container",
    "voices/variants/hostile",
    "sine/gaps",
    "sine/one_frame",
    "sine/long",
    "rmvpe/rmvpe_tiny/noise",
    "rmvpe/decode",
    "hubert/tiny/*",
    "hubert/hostile",
    "functions/coarse",
    "functions/rms/c",
    "functions/rms/silence",
    "functions/highpass",
    "functions/retrieval",
    "functions/segments/silence",
    "functions/segments/over_limit",
    "functions/segments/very_short",
    "functions/load_audio",
    "functions/f0/speechy",
    "pipeline/p02_*",
    "pipeline/p07_*",
    "pipeline/p09_*",
    "pipeline/p10_*",
    "pipeline/p16_*",
)
DROPPED_ARRAYS = (  # one of several that differ in a factor only
    "functions/retrieval.npz:phone.rate0.3.protect*",
    "functions/retrieval.npz:phone.rate1.protect0.33",
)
COMPANIONS = ("hubert/key_map.json", "hubert/tiny_hf/*")  # used by cases that do not name them
LIMIT_BYTES = 9_000_000  # in git, for good
LICENCE = """These vectors are the output of a program run on random weights and synthetic signals; they contain no
third-party recording, no pretrained weight and no source code. They are distributed under the licence of this project
(MIT, see LICENSE at its top). Copied from a larger set of the same layout; see README.md, written for the whole set.
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with index.json")
    parser.add_argument("target", type=Path, nargs="?", default=Path("tests/golden/rvc"), help="new or replaced folder")
    parser.add_argument("--cases", nargs="+", default=list(CHOSEN), help="patterns of case ids to keep")
    parser.add_argument("--drop", nargs="*", default=list(DROPPED_ARRAYS), help="arrays to leave out, as file:pattern")
    return parser.parse_args(arguments)


def chosen_cases(cases: list[dict[str, Any]], keep: list[str]) -> list[dict[str, Any]]:
    """The cases that match a pattern of `keep`, in their order."""
    return [case for case in cases if any(fnmatch(case["id"], pattern) for pattern in keep)]


def wanted_files(index: dict[str, Any], cases: list[dict[str, Any]]) -> list[str]:
    """Files the cases name, and those that stand beside them without being named."""
    named = {name for case in cases for name in case["files"]}
    for name in index["files"]:
        if any(fnmatch(name, pattern) for pattern in COMPANIONS) and any(
            other.split("/")[0] == name.split("/")[0] for other in named
        ):
            named.add(name)
    return [name for name in index["files"] if name in named]


def copy_arrays(source: Path, target: Path, prefixes: tuple[str, ...], drop: tuple[str, ...]) -> None:
    """Copy an `.npz`; with prefixes, only the arrays under them; in any case without those that match `drop`."""
    if not prefixes and not drop:
        shutil.copyfile(source, target)
        return
    with np.load(source, allow_pickle=False) as archive:
        kept = [
            key
            for key in archive.files
            if (not prefixes or key.startswith(prefixes)) and not any(fnmatch(key, pattern) for pattern in drop)
        ]
        np.savez_compressed(target, **{key: archive[key] for key in kept})


def kept_prefixes(index: dict[str, Any], cases: list[dict[str, Any]], name: str) -> tuple[str, ...]:
    """Prefixes to keep of one array file; empty when all its cases are kept or its cases have no prefix."""
    every = [case for case in index["cases"] if name in case["files"]]
    kept = [case for case in cases if name in case["files"]]
    if len(every) == len(kept) or not all("prefix" in case for case in every):
        return ()
    return tuple(case["prefix"] for case in kept)


def describe(path: Path) -> tuple[dict[str, Any], dict[str, list] | None]:
    """The `files` entry and, for arrays, the `arrays` entry of one file."""
    data = path.read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if path.suffix != ".npz":
        return entry, None
    with np.load(path, allow_pickle=False) as archive:
        return entry, {key: [str(archive[key].dtype), list(archive[key].shape)] for key in archive.files}


def write_subset(source: Path, target: Path, cases: list[dict[str, Any]], drop: list[str]) -> int:
    """Write the kept cases under `target` without the arrays of `drop`; returns the bytes written."""
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in index.items() if key not in ("cases", "arrays", "files")}
    kept |= {"cases": cases, "arrays": {}, "files": {}}
    for name in wanted_files(index, cases):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            patterns = tuple(one.partition(":")[2] for one in drop if one.startswith(name + ":"))
            copy_arrays(source / name, path, kept_prefixes(index, cases, name), patterns)
        elif name == "recipes.json":
            needed = needed_recipes(cases)
            recipes = json.loads((source / name).read_text(encoding="utf-8"))
            path.write_text(json.dumps({key: recipes[key] for key in recipes if key in needed}), encoding="utf-8")
        else:
            shutil.copyfile(source / name, path)
        entry, layout = describe(path)
        kept["files"][name] = entry
        if layout is not None:
            kept["arrays"][name] = layout
    (target / "index.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(source / "README.md", target / "README.md")
    (target / "LICENSE").write_text(LICENCE, encoding="utf-8")
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def needed_recipes(cases: list[dict[str, Any]]) -> set[str]:
    """Recipes that the kept cases build a network from."""
    named = {case["recipe"] for case in cases if "recipe" in case}
    settings = [case["settings"] for case in cases if "settings" in case]
    named |= {one[role] for one in settings for role in ("encoder", "method", "voice")}
    return named | {"hubert_tiny"}  # stored as files, and checked against its recipe


def main(arguments: list[str] | None = None) -> int:
    """Write the subset; 1 if it is too large for git."""
    options = parse(arguments)
    index = json.loads((options.source / "index.json").read_text(encoding="utf-8"))
    cases = chosen_cases(index["cases"], options.cases)
    if not cases:
        sys.stderr.write("No case matches. The ids are in index.json of the source.\n")
        return 1
    fresh = options.target.with_name(options.target.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    size = write_subset(options.source, fresh, cases, options.drop)
    if size > LIMIT_BYTES:
        sys.stderr.write(f"{len(cases)} cases take {size} bytes, more than {LIMIT_BYTES}. Choose fewer.\n")
        shutil.rmtree(fresh)
        return 1
    shutil.rmtree(options.target, ignore_errors=True)
    os.replace(fresh, options.target)
    sys.stdout.write(f"{len(cases)} of {len(index['cases'])} cases, {size} bytes, in {options.target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
