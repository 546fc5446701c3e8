"""Finds the retrieval index that belongs to a voice, by its name, and says why it was chosen.

People rename, download and link these files in every way; the rules below accept the customs of the common tools, and
where two files fit equally well the choice is handed back instead of guessed. Only headers are read here.

    rank 0  the index has the voice's name                    singer.pth      singer.index
    rank 1  a standard name made from the voice's name        singer_e90.pth  added_IVF64_Flat_nprobe_1_singer_v2.index
    rank 2  the voice's name stands in it as whole words      singer.pth      my_singer_best.index
    rank 3  the only index beside the only voice of a folder  model.pth       added_IVF64_Flat_nprobe_1_other_v2.index
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rvc_spark.errors import IndexFileError
from rvc_spark.infer.index_file import read_header

MAX_DEPTH = 3
"""How many folders deep an index is looked for (`logs/<voice>/added_*.index` is 1)."""
MAX_FILES = 20_000
"""How many files are looked at in all; a wrongly set folder must not cost minutes."""

_STANDARD = re.compile(
    r"(?:.*?_)?(?:added_|(?P<half>trained_))?ivf\d+_flat_nprobe_\d+_(?P<voice>.+?)(?:_v[12])?", re.DOTALL
)
_LINKED = re.compile(r"(?P<voice>.+)_(?:added_)?ivf\d+_flat.*", re.DOTALL)
_SUFFIXES = (
    re.compile(r"(?:_e\d+)?_s\d+$|_e\d+$"),  # epoch and step of the reference: _e90_s4500
    re.compile(r"_\d+e_\d+s(?:_best_epoch)?$"),  # the same as other tools write it
    re.compile(r"_(?:24|32|40|44|48)k$"),
    re.compile(r"_v[12]$"),
)
_REASONS = (
    "it has the voice's name",
    "its standard name is made from the voice's",
    "the voice's name stands in it",
    "it is the only index beside the only voice of that folder",
)


@dataclass(frozen=True)
class IndexChoice:
    """The index found for a voice, or None, and why."""

    path: Path | None
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name if self.path else 'none'} ({self.reason})"


@dataclass(frozen=True, order=True)
class _Candidate:
    rank: tuple[int, int]
    path: Path


def find_index(voice_path: str | Path, folders: Iterable[str | Path], dim: int) -> IndexChoice:
    """The index of a voice among the files beside it (one level deep) and in `folders` (three levels deep).

    dim: width of the voice's content features, 256 (v1) or 768 (v2); an index of another width or a damaged one is
    passed over and named in the reason. Raises IndexFileError when several fit equally well and not exactly one of
    them lies beside the voice.
    """
    voice = Path(voice_path)
    folders = [Path(folder) for folder in folders]
    names = _voice_names(voice.stem)
    # Beside a voice only its own subfolders count: it may lie in a folder of downloads.
    depths = {folder: 1 if _same_folder(folder, voice.parent) else MAX_DEPTH for folder in [voice.parent, *folders]}
    found, complete = _index_files(depths)
    files = _distinct(found)
    candidates = [_Candidate(rank, path) for path in files if (rank := _rank(_plain(path.stem), names)) is not None]
    if not candidates:
        candidates = _only_pair(voice)
    usable, refused = _fitting(sorted(candidates), dim)
    note = f"; passed over {', '.join(refused)}" if refused else ""
    note += "" if complete else f"; stopped after {MAX_FILES:,} files"
    if not usable:
        searched = f"no index for {voice.stem} in {len(files)} index file{'' if len(files) == 1 else 's'}"
        return IndexChoice(None, searched + note)
    best = [candidate.path for candidate in usable if candidate.rank == usable[0].rank]
    reason = _REASONS[usable[0].rank[0]]
    beside = [path for path in best if _same_folder(path.parent, voice.parent)]
    if len(best) > 1 and len(beside) == 1:
        return IndexChoice(beside[0], f"{reason}, and of {len(best)} such it lies beside the voice{note}")
    if len(best) > 1:
        raise IndexFileError(
            f"{len(best)} indexes fit the voice {voice.stem} equally well: {', '.join(str(path) for path in best[:8])}",
            "Name the one to use, or move the others away.",
        )
    return IndexChoice(best[0], reason + note)


def _plain(name: str) -> str:
    """Comparable form of a name: composed letters, no case."""
    return unicodedata.normalize("NFC", name).casefold()


def _voice_names(stem: str) -> list[str]:
    """The names a voice file goes by, most specific first: singer_40k_e90_s4500 -> ..., singer_40k, singer."""
    names = [_plain(stem)]
    shortened = True
    while shortened:
        shortened = False
        for suffix in _SUFFIXES:
            shorter = suffix.sub("", names[-1])
            if shorter and shorter != names[-1]:
                names.append(shorter)
                shortened = True
    return names


def _rank(index_name: str, names: Sequence[str]) -> tuple[int, int] | None:
    """(rule, how far the voice's name had to be shortened); lower is better, None: not this voice's."""
    if index_name in names:
        return 0, names.index(index_name)
    standard = _STANDARD.fullmatch(index_name)
    if standard and standard["half"] or index_name.startswith("trained_"):
        return None  # the empty half-way product of training
    linked = _LINKED.fullmatch(index_name)
    trained_as = {match["voice"] for match in (standard, linked) if match and match["voice"] != "added"}
    for place, name in enumerate(names):
        if name in trained_as:
            return 1, place
    # Words of the standard pattern itself (added, flat, 1, v2) are nobody's name, so only the voice's part is searched.
    searched = trained_as or {index_name}
    for place, name in enumerate(names):
        if any(re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text) for text in searched):
            return 2, place
    return None


def _index_files(depths: Mapping[Path, int]) -> tuple[list[Path], bool]:
    """Every *.index below the folders in a fixed order, so many levels deep; whether MAX_FILES sufficed."""
    looked_at = 0
    found = []
    for folder, levels in depths.items():
        root = os.path.abspath(folder)
        for here, below, files in os.walk(root):
            depth = len(Path(here).relative_to(root).parts)
            below[:] = sorted(below) if depth < levels else []
            for name in sorted(files):
                looked_at += 1
                if looked_at > MAX_FILES:
                    return found, False
                if name.casefold().endswith(".index"):
                    found.append(Path(here) / name)
    return found, True


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Each file once, under the name met first: tools link the same index into several folders."""
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        try:
            info = path.stat()
        except OSError:  # a link to nothing
            continue
        seen.setdefault((info.st_dev, info.st_ino), path)
    return list(seen.values())


def _only_pair(voice: Path) -> list[_Candidate]:
    """Rank 3: a folder with one voice and one index, as archives unpack to."""
    try:
        files = [path for path in voice.parent.iterdir() if path.is_file()]
    except OSError:  # no such folder, or not ours to read
        return []
    voices = [path for path in files if path.suffix.casefold() == ".pth"]
    indexes = [path for path in files if path.suffix.casefold() == ".index"]
    if len(voices) == 1 and len(indexes) == 1 and not indexes[0].name.casefold().startswith("trained_"):
        return [_Candidate((3, 0), indexes[0])]
    return []


def _fitting(candidates: Sequence[_Candidate], dim: int) -> tuple[list[_Candidate], list[str]]:
    """Those with a sound header of the right width, and the names of the others with the reason."""
    usable, refused = [], []
    for candidate in candidates:
        try:
            header = read_header(candidate.path)
        except IndexFileError as error:
            refused.append(error.problem)
            continue
        if header.dim == dim:
            usable.append(candidate)
        else:
            refused.append(f"{candidate.path.name} (vectors of {header.dim}, the voice needs {dim})")
    return usable, refused


def _same_folder(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
