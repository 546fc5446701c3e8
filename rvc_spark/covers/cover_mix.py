"""The last stage of a cover: its tracks into one file of the wanted format, tagged as what it is, put into place."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rvc_spark.audio import EncodeOptions, open_audio
from rvc_spark.audio_writer import check_target
from rvc_spark.covers.artefacts import Draft
from rvc_spark.covers.cover_chain import Job, TrackPart
from rvc_spark.covers.cover_sources import FLOAT_WAV, RATE, read_blocks
from rvc_spark.covers.cover_work import Work
from rvc_spark.covers.mix import MixSettings, mix_steps
from rvc_spark.covers.recipe import Recipe
from rvc_spark.covers.tracks import Track
from rvc_spark.errors import OutputError

TAG = "AI cover: the singing voice was converted by a neural network"
MAX_TITLE = 100


def tagged(options: EncodeOptions | None, output: Path | None, job: Job) -> EncodeOptions:
    """The options of the file, with tags that say what it is. Without a file: float WAV, which holds every sample.

    Raises OutputError: the suffix tells no format.
    """
    options = options or (replace(FLOAT_WAV, watermark=None) if output is None else EncodeOptions())
    names = [source.name for source in job.sources.values()]
    title = "".join(letter if letter.isprintable() else " " for letter in names[0])[:MAX_TITLE].strip()
    voice, licence = job.lead_voice.name, job.lead_voice.licence
    comment = f"{TAG}; voice: {voice}" + (f" ({licence})" if licence else "")
    comment = "".join(letter if letter.isprintable() else " " for letter in comment)[:1000]
    artist = f"{voice[:MAX_TITLE]} (AI voice)"
    options = replace(
        options, title=options.title or f"{title} (AI cover)", artist=options.artist or artist,
        comment=options.comment or comment,
    )  # fmt: skip
    return options.resolved(output or Path("mix.wav"))


def mix_recipe(tracks: Sequence[TrackPart], settings: MixSettings, options: EncodeOptions) -> Recipe:
    """What a mixed file depends on."""
    digests = {track.name: track.part.digest for track in tracks}
    gains = {f"gain of {track.name}": track.gain_db for track in tracks}
    file = {f"the file's {name}": value for name, value in asdict(options).items()}
    return Recipe("mix", 1, digests, {**gains, **vars(settings), **file})


def mix_work(draft: Draft, tracks: Sequence[TrackPart], settings: MixSettings, options: EncodeOptions) -> Work:
    """`mix.<format>`; facts: the MixReport."""
    report = yield from mix_steps(
        [_track(track) for track in tracks], draft.path(f"mix.{options.format}"), settings, rate=RATE, options=options
    )
    draft.facts |= {**report.as_dict(), "path": ""}
    draft.facts |= {name: None for name, value in draft.facts.items() if isinstance(value, float) and value in _ENDLESS}


_ENDLESS = (float("inf"), float("-inf"))  # of silence; JSON has no such number


def _track(track: TrackPart) -> Track:
    path = track.part.path
    with open_audio(path) as reader:
        rate, channels, frames = reader.rate, reader.channels, reader.frames
    return Track(track.name, read_blocks(path), rate, channels, track.gain_db, frames)


def place(made: Path, target: Path) -> Path:
    """Copy a finished file to where it is wanted; it appears whole or not at all. Raises OutputError."""
    if target.suffix.lower() not in _suffixes(made):
        raise OutputError(f"{target.name} does not end in {made.suffix}", "Make the cover again in the other format.")
    check_target(target)
    beside = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        shutil.copyfile(made, beside)
        os.replace(beside, target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror})", "Free some space there.") from error
    finally:
        beside.unlink(missing_ok=True)
    return target


def _suffixes(made: Path) -> tuple[str, ...]:
    same = {".wav": (".wav", ".wave"), ".ogg": (".ogg", ".oga"), ".m4a": (".m4a", ".mp4", ".aac")}
    return same.get(made.suffix, (made.suffix,))
