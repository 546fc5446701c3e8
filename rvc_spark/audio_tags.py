"""What a file says about itself in words: title, artist, comment; how wav and mp3 hold them, and reading them back.

Whoever makes sound with a model should say so where listeners can see it, and every player shows these three. FLAC, Ogg
and MP4 take them through their libraries. WAV gets a LIST chunk; of MP3 the library at hand writes Latin-1 only, so its
ID3v2.3 tag is made here, in UTF-16 as that version asks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from rvc_spark.audio_source import Source, open_source
from rvc_spark.errors import AudioError, OutputError

MAX_TAG = 1_000
"""Characters. One line that a player shows."""
_RIFF_NAMES = {"title": b"INAM", "artist": b"IART", "comment": b"ICMT"}
_ID3_NAMES = {"title": b"TIT2", "artist": b"TPE1", "comment": b"COMM"}
_ID3_UTF16 = b"\x01"


@dataclass(frozen=True)
class Tags:
    """Three lines, any of them empty.

    Raises:
        OutputError: longer than MAX_TAG characters, or with line breaks or control characters.
    """

    title: str = ""
    artist: str = ""
    comment: str = ""

    def __post_init__(self) -> None:
        for name, text in self.present().items():
            if len(text) > MAX_TAG or not text.isprintable():
                raise OutputError(
                    f"The {name} has {len(text):,} characters or control characters in it",
                    f"Write one line of at most {MAX_TAG} characters.",
                )

    def present(self) -> dict[str, str]:
        """Those that say something, by name."""
        named = {"title": self.title, "artist": self.artist, "comment": self.comment}
        return {name: text for name, text in named.items() if text}


def riff_tags(tags: Tags) -> bytes:
    """The LIST chunk of a wav file; nothing where there is nothing to say."""
    body = b"INFO"
    for name, text in tags.present().items():
        data = text.encode("utf-8", "replace") + b"\0"
        body += struct.pack("<4sI", _RIFF_NAMES[name], len(data)) + data + b"\0" * (len(data) % 2)
    return struct.pack("<4sI", b"LIST", len(body)) + body if len(body) > 4 else b""


def id3_tags(tags: Tags) -> bytes:
    """An ID3v2.3 tag for the beginning of an mp3; nothing where there is nothing to say."""
    frames = b""
    for name, text in tags.present().items():
        data = text.encode("utf-16", "replace")
        if name == "comment":  # language, an empty description, the text
            data = b"eng" + "".encode("utf-16") + b"\0\0" + data
        frames += struct.pack(">4sIH", _ID3_NAMES[name], len(data) + 1, 0) + _ID3_UTF16 + data
    if not frames:
        return b""
    size = bytes(len(frames) >> shift & 0x7F for shift in (21, 14, 7, 0))  # seven bits a byte: never like a sync word
    return b"ID3\x03\x00\x00" + size + frames


def read_tags(source: object) -> dict[str, str]:
    """The words in a sound file by lower-case name, of whatever format: "title", "artist", "comment", "encoder" ...

    Args:
        source: as of `open_audio`.

    Raises:
        AudioError: it is no sound that can be read.
    """
    import av  # a large library that reading samples of wav and flac does not need

    from rvc_spark.audio_codec import LIBAV_FORMATS

    opened: Source = open_source(source)
    try:
        limits = {"format_whitelist": LIBAV_FORMATS, "protocol_whitelist": "none"}
        with av.open(opened.stream, "r", options=limits) as container:
            streams = [stream.metadata for stream in container.streams.audio[:1]]
            found = [container.metadata, *streams]
            return {name.lower(): text for metadata in reversed(found) for name, text in metadata.items()}
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"The tags of {opened.name} cannot be read ({error})", "Give a sound file.") from error
    finally:
        opened.close()
