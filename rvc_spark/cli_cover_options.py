"""The options of `rvc-spark cover`, most of them with the words and ranges of the settings themselves."""

from __future__ import annotations

import argparse
from typing import Any

from rvc_spark.cli_cover import moment, setting_fields

FORMATS = ("wav", "flac", "ogg", "mp3", "m4a")


def add_cover_options(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    parser.add_argument("song", nargs="?", help="the song: a sound file, or a video; not needed with both stems")
    parser.add_argument("-o", "--output", help="file to write (default: SONG_VOICE.flac)")
    parser.add_argument("--format", choices=FORMATS, help="of the default name; else the suffix of the output decides")
    stems = parser.add_argument_group("stems that are there already")
    stems.add_argument("--vocals", metavar="FILE", help="the vocals; with SONG, the band is what is left of it")
    stems.add_argument("--accompaniment", metavar="FILE", help="the band; with SONG, in place of the song's own")
    stems.add_argument("--vocals-only", action="store_true", help="SONG is nothing but a voice")
    voice = parser.add_argument_group("voice")
    voice.add_argument("--voice", default="demo", help="name of a voice (see `rvc-spark voices`), or path of a .pth")
    voice.add_argument("--index", default="auto", help="auto, none, or path of an .index file (default: auto)")
    voice.add_argument("--device", default=None, help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    words = "perth adds an inaudible mark that says a program made it (default: `watermark` of the settings, none)"
    parser.add_argument("--watermark", choices=("none", "perth"), help=words)
    _add_settings(parser.add_argument_group("cover"))
    parser.add_argument(
        "--ranges", action="append", default=[], metavar="START-END,...",
        help="convert only these, as in 12.5-30,1:05-1:20; elsewhere the original voice stays",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="any setting of the stages: reverb=0.3, index_rate=0.5, gate.hold=0.2, target_lufs=-16",
    )  # fmt: skip
    work = parser.add_argument_group("what was made before")
    work.add_argument("--explain", action="store_true", help="say what would be made and what is kept, and do nothing")
    work.add_argument(
        "--prune", nargs="?", const="old", choices=("old", "all"), default=None,
        help="remove stages by age and size (covers_days, covers_gib), or all that no run uses",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object per result and nothing else")


def _add_settings(group: Any) -> None:
    for name, item in setting_fields().items():
        low, high, unit = (item.metadata[part] for part in ("low", "high", "unit"))
        span = "" if low is None else f"; {low:g} to {high:g} {unit}".rstrip()
        kinds = {"bool": None, "float": float, "float | None": float, "str | None": str, "str": str}
        words = f"{item.metadata['help']}{span}".replace("%", "%%")
        words += "" if item.default is None else f" (default: {item.default})"
        flag = f"--{name.replace('_', '-')}"
        if item.type == "bool":
            group.add_argument(flag, dest=name, action="store_true", default=argparse.SUPPRESS, help=words)
            continue
        kind = moment if name == "preview" else kinds[item.type]
        group.add_argument(flag, dest=name, type=kind, default=argparse.SUPPRESS, metavar=name.upper(), help=words)
