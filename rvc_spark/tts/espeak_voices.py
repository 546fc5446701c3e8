"""The languages and voice variants espeak-ng brings, read from its data folder, and how people name them.

Only names found here ever reach the library: it would open any path it is handed as a voice.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rvc_spark.errors import SpeechError

# Greenlandic: espeak-ng 1.52 ends the process at every digit 0. The other two are written with letters that are not
# let through (Shavian, Klingon).
_LEFT_OUT = {"esx/kl", "gmw/en-Shaw", "art/piqd"}
_UNLIKELY = 99  # preference of a voice for a language it does not name
_MAX_DEFINITION = 64 << 10  # bytes of a voice file that are looked at; real ones have a few hundred


@dataclass(frozen=True)
class EspeakVoice:
    """A language voice: `code` as people write it (en-us), `identifier` as the library knows it (gmw/en-US).

    languages: every code it serves with the library's preference, lower is better.
    """

    code: str
    name: str
    identifier: str
    languages: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class EspeakVariant:
    """A manner of speaking laid over a language voice, such as f3 (female) or whisper; gender as the file says."""

    code: str
    name: str
    gender: str


@lru_cache(maxsize=8)
def voices(data: Path) -> tuple[EspeakVoice, ...]:
    """All languages whose dictionary is there, by code. Raises SpeechError if the data folder is not one."""
    found = []
    for path in sorted((data / "lang").rglob("*")):
        if not path.is_file():
            continue
        lines = _definition(path)
        languages = tuple(
            (line[1].lower(), int(line[2]) if len(line) > 2 and line[2].isdigit() else 5)
            for line in lines
            if line[0] == "language" and len(line) > 1
        )
        dictionary = next((line[1] for line in lines if line[0] == "dictionary"), path.name.split("-")[0])
        identifier = path.relative_to(data / "lang").as_posix()
        if languages and identifier not in _LEFT_OUT and (data / f"{dictionary}_dict").is_file():
            name = next((" ".join(line[1:]) for line in lines if line[0] == "name"), path.name)
            found.append(EspeakVoice(languages[0][0], name, identifier, languages))
    if not found:
        raise SpeechError(
            f"{data} holds no languages of espeak-ng", "Reinstall: pip install --force-reinstall espeakng-loader"
        )
    return tuple(sorted(found, key=lambda voice: (voice.code, voice.identifier)))


@lru_cache(maxsize=8)
def variants(data: Path) -> tuple[EspeakVariant, ...]:
    """All variants, by code."""
    found = []
    for path in sorted((data / "voices" / "!v").glob("*")):
        lines = _definition(path)
        name = next((" ".join(line[1:]) for line in lines if line[0] == "name"), path.name)
        gender = next((line[1] for line in lines if line[0] == "gender" and len(line) > 1), "unknown")
        found.append(EspeakVariant(path.name, name, gender))
    return tuple(found)


def _definition(path: Path) -> list[list[str]]:
    """The words of each line that says something."""
    try:
        with path.open(encoding="utf-8", errors="replace") as handle:
            text = handle.read(_MAX_DEFINITION)
    except OSError as error:
        raise SpeechError(
            f"espeak-ng's file {path.name} cannot be read ({error})",
            "Reinstall: pip install --force-reinstall espeakng-loader",
        ) from error
    return [words for line in text.splitlines() if (words := line.split("//")[0].split())]


def resolve(data: Path, wanted: str, variant: str | None) -> str:
    """What people call a voice -> the library's identifier: "en-us+f3" -> "gmw/en-US+f3".

    wanted: a code, a language (`en`: its preferred voice; `de-AT`: German, as there is no Austrian), a voice's full
    name, each with an optional +variant. Raises SpeechError naming the nearest that exist.
    """
    code, _, inline = wanted.partition("+")
    chosen = inline or variant
    plain = code.strip().lower().replace("_", "-")
    found = _by_code(data, plain) or _by_name(data, plain) or _by_code(data, plain.split("-")[0])
    if found is None:
        known = [voice.code for voice in voices(data)]
        raise SpeechError(f"the voice {_short(wanted)} is unknown to espeak-ng", _nearest(plain, known))
    if not chosen:
        return found.identifier
    for known_variant in variants(data):
        if chosen.strip().lower() in (known_variant.code.lower(), known_variant.name.lower()):
            return f"{found.identifier}+{known_variant.code}"
    codes = [known_variant.code for known_variant in variants(data)]
    raise SpeechError(f"the voice variant {_short(chosen)} is unknown to espeak-ng", _nearest(chosen.lower(), codes))


def _by_code(data: Path, code: str) -> EspeakVoice | None:
    serving = [(dict(voice.languages).get(code, _UNLIKELY), voice.code, voice) for voice in voices(data)]
    preference, _, voice = min(serving, key=lambda item: item[:2])
    return voice if preference < _UNLIKELY else None


def _by_name(data: Path, name: str) -> EspeakVoice | None:
    return next((voice for voice in voices(data) if name in (voice.name.lower(), voice.identifier.lower())), None)


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:40] + "...")


def _nearest(wanted: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wanted[:40], known, n=5, cutoff=0.3) or known[:5]
    return f"Near to it are {', '.join(close)}; EspeakEngine().voices() lists all {len(known)}."
