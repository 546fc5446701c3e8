"""What a file is, told from its bytes: which decoder reads it, whether it is whole, and what it is if it is no sound.

Names and suffixes are never believed. Reads headers only, a bounded number of them, and decodes nothing.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from rvc_spark.errors import AudioError

HEAD_BYTES = 4_096
"""Bytes looked at to tell what a file is."""
MAX_CHUNKS = 10_000
"""Chunks walked over in search of the sound before giving up; real files have fewer than a hundred."""
SLACK_BYTES = 64
"""Bytes a chunk may claim beyond the end of the file: some programs count their own header into it."""

SCAN_BYTES = 2**20
"""Bytes read at a time when a whole file is searched."""
VORBIS_TO_WAV = {
    3: (0, 2, 1),
    5: (0, 2, 1, 3, 4),
    6: (0, 2, 1, 5, 3, 4),
    7: (0, 2, 1, 6, 5, 3, 4),
    8: (0, 2, 1, 7, 5, 6, 3, 4),
}
"""Vorbis and Opus line channels up as L C R ... LFE, everything else as L R C LFE ...; libsndfile leaves that to us.
WAV channel k is channel `VORBIS_TO_WAV[channels][k]` of the Ogg file; other channel counts agree."""
_OGG_FIRST_PAGE = b"OggS\0\x02"
_WAV_MPEG_TAGS = (b"\x50\x00", b"\x55\x00")  # MP2 and MP3 inside WAV
_OGG_CODECS = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC")

# "Length not known when the header was written", as recorders and pipes (ffmpeg, sox, arecord) leave it in 32 bits.
_OPEN_SIZES = frozenset(
    {0, 0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x7FFFF000, 0x80000000, 0x7FFFF024}
)

_NO_SOUND = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run `git lfs pull` where it came from."),
    (b"PK\x03\x04", "a zip archive (or a model file)", "Unpack it and give the sound inside."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it and give the sound inside."),
    (b"Rar!", "a RAR archive", "Unpack it and give the sound inside."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it and give the sound inside."),
    (b"\xfd7zXZ", "an xz archive", "Unpack it and give the sound inside."),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it and give the sound inside."),
    (b"BZh", "a bzip2 archive", "Unpack it and give the sound inside."),
    (b"%PDF", "a PDF document", "Give a sound file."),
    (b"\x89PNG", "a PNG image", "Give a sound file."),
    (b"\xff\xd8\xff", "a JPEG image", "Give a sound file."),
    (b"GIF8", "a GIF image", "Give a sound file."),
    (b"BM", "a BMP image", "Give a sound file."),
    (b"MThd", "a MIDI score, which holds notes and no sound", "Render it to WAV with a synthesizer."),
    (b"\x7fELF", "a program", "Give a sound file."),
    (b"MZ", "a program", "Give a sound file."),
    (b"SQLite", "a database", "Give a sound file."),
    (b"\x93NUMPY", "a numpy array", "Load it with numpy and give it as Audio(samples, rate)."),
    (b"\x80\x02", "a pickle (an old model file)", "Give a sound file."),
    (b"\x80\x04", "a pickle", "Give a sound file."),
)


@dataclass(frozen=True)
class Container:
    """How to read a file.

    Attributes:
        kind: short name for messages ("wav", "flac", "mp3 or other compressed sound").
        soundfile: libsndfile reads it, with an exact frame count. For the rest libav does: MP3 (gapless data), and what
            libsndfile reads in part only, such as a chained Ogg or a header that was never completed.
    """

    kind: str
    soundfile: bool


def identify(stream: BinaryIO, size: int, name: str) -> Container:
    """Tell how to read a file and refuse what is no sound or not whole. The stream is left at its start.

    Raises:
        AudioError: text, a web page, an archive, an image ..., or a container that claims more bytes than there are.
    """
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    refuse_no_sound(head, name)
    container = _container(head)
    unfinished = _check_whole(stream, size, head, name)
    mpeg = head[20:22] in _WAV_MPEG_TAGS and head[12:16] == b"fmt "
    if container.kind == "wav" and (unfinished or mpeg):  # libsndfile takes a data chunk of "0 bytes, yet" literally
        container = Container("wav", soundfile=False)
    if container.kind == "flac" and _flac_frames(head) == 0:  # same for FLAC: unknown total
        container = Container("flac", soundfile=False)
    if container.kind == "ogg" and head[28:36].startswith(_OGG_CODECS) and _is_single_ogg(stream):
        container = Container("ogg", soundfile=True)
    stream.seek(0)
    return container


def refuse_no_sound(head: bytes, name: str) -> None:
    """Refuse what the first bytes show to be no sound.

    Raises:
        AudioError: says what it is instead.
    """
    for magic, what, next_step in _NO_SOUND:
        if head.startswith(magic):
            raise AudioError(f"{name} is {what}", next_step)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        raise AudioError(f"{name} is a WebP image", "Give a sound file.")
    if len(head) >= 16 and not head.strip(b"\0"):
        raise AudioError(f"{name} holds only zero bytes", "The download or copy failed: fetch it again.")
    text = _as_text(head)
    if text is None:
        return
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html", "<head", "<body")):
        raise AudioError(
            f"{name} is a web page, not a sound", "The link led to a page about the file: use its download link."
        )
    excerpt = ascii(text.strip()[:40])
    raise AudioError(f"{name} is text, not a sound; it begins with {excerpt}", "Give a sound file.")


def _as_text(head: bytes) -> str | None:
    """The bytes as text if that is what they are: UTF-8 (a cut last character is fine) without control characters."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or error.start == 0:
            return None
        text = head[: error.start].decode("utf-8-sig")
    return None if re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text) else text


def _container(head: bytes) -> Container:
    form = head[8:12]
    if head[:4] in (b"RIFF", b"RF64", b"RIFX", b"BW64") and form == b"WAVE":
        return Container("wav", soundfile=True)
    if head[:4] == b"FORM" and form in (b"AIFF", b"AIFC"):
        return Container("aiff", soundfile=True)
    if head[:4] == b"fLaC":
        return Container("flac", soundfile=True)
    for magic, kind in (
        (b".snd", "au"),
        (b"caff", "caf"),
        (b"riff\x2e\x91\xcf\x11", "w64"),
        (b"NIST_1A", "nist"),
        (b"Creative Voice File", "voc"),
    ):
        if head.startswith(magic):
            return Container(kind, soundfile=True)
    for offset, magic, kind in (
        (4, b"ftyp", "mp4"),
        (0, b"\x1a\x45\xdf\xa3", "matroska"),
        (0, b"OggS", "ogg"),
        (8, b"AVI ", "avi"),
        (0, b"ID3", "mp3"),
        (0, b"#!AMR", "amr"),
        (0, b"FLV", "flv"),
        (0, b"\x30\x26\xb2\x75", "asf"),
    ):
        if head[offset : offset + len(magic)] == magic:
            return Container(kind, soundfile=False)
    return Container("sound without a header", soundfile=False)


def _is_single_ogg(stream: BinaryIO) -> bool:
    """Whether one logical stream is all there is: radio dumps chain several, videos interleave several.

    Every logical stream begins with a page flagged so (RFC 3533); libav is not sample-exact on Vorbis, libsndfile stops
    after the first of a chain.
    """
    stream.seek(0)
    count = 0
    tail = b""
    while count < 2 and (block := stream.read(SCAN_BYTES)):
        window = tail + block
        count += window.count(_OGG_FIRST_PAGE)
        tail = window[-len(_OGG_FIRST_PAGE) + 1 :]
    return count == 1


def _flac_frames(head: bytes) -> int:
    """Frame count in the STREAMINFO block: the low 36 bits of bytes 18..26; 0 means "not known"."""
    return int.from_bytes(head[18:26], "big") & (2**36 - 1)


@dataclass(frozen=True)
class _Layout:
    """How a family of containers lines up its chunks: `header` holds a name (s) and a size (the number)."""

    start: int
    header: struct.Struct
    size_first: bool = False
    size_counts_header: bool = False
    even: bool = False
    sound: bytes | None = None  # the chunk after which nothing matters; None: every chunk matters


_RIFF = _Layout(12, struct.Struct("<4sI"), even=True, sound=b"data")
_RIFX = _Layout(12, struct.Struct(">4sI"), even=True, sound=b"data")
_FORM = _Layout(12, struct.Struct(">4sI"), even=True, sound=b"SSND")
_CAF = _Layout(8, struct.Struct(">4sq"), sound=b"data")
_AVI = _Layout(0, struct.Struct("<4sI"), even=True)
_MP4 = _Layout(0, struct.Struct(">I4s"), size_first=True, size_counts_header=True)


def _check_whole(stream: BinaryIO, size: int, head: bytes, name: str) -> bool:
    """Compare what the container claims with what is there. True when its sound chunk says "0 bytes" and has more."""
    if head[:4] in (b"RF64", b"BW64"):
        return _check_chunks(stream, size, _RIFF, name, long_size=_rf64_data_bytes(head))
    for magic, form, layout in (
        (b"RIFF", b"WAVE", _RIFF),
        (b"RIFX", b"WAVE", _RIFX),
        (b"FORM", b"AIF", _FORM),
        (b"caff", b"", _CAF),
        (b"RIFF", b"AVI ", _AVI),
    ):
        if head[:4] == magic and head[8:12].startswith(form):
            return _check_chunks(stream, size, layout, name)
    if head[4:8] == b"ftyp":
        return _check_chunks(stream, size, _MP4, name)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        _check_matroska(head, size, name)
    return False


def _rf64_data_bytes(head: bytes) -> int | None:
    """Size of the sound in the `ds64` chunk of an RF64 file (EBU Tech 3306), which holds what 32 bits cannot."""
    return struct.unpack_from("<Q", head, 28)[0] if head[12:16] == b"ds64" and len(head) >= 36 else None


def _check_chunks(stream: BinaryIO, size: int, layout: _Layout, name: str, long_size: int | None = None) -> bool:
    for chunk, begin, length in _chunks(stream, size, layout):
        if layout.sound is not None and chunk != layout.sound:
            continue
        if long_size is not None:
            length = long_size
        elif length in _OPEN_SIZES or length < 0:  # a caf file may say -1
            return length == 0 and size - begin > 0
        if begin + length > size + SLACK_BYTES:
            raise _cut_off(name, begin + length, size)
        if layout.sound is not None:
            return False
    return False


def _chunks(stream: BinaryIO, size: int, layout: _Layout) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte of the content, length of the content) of each chunk; ends quietly at what is no chunk."""
    position = layout.start
    for _ in range(MAX_CHUNKS):
        stream.seek(position)
        raw = stream.read(layout.header.size)
        if len(raw) < layout.header.size:
            return
        first, second = layout.header.unpack(raw)
        chunk, length = (second, first) if layout.size_first else (first, second)
        begin = position + len(raw)
        if not re.fullmatch(rb"[\x20-\x7e\xa9]{4}", chunk):
            return
        if layout.size_counts_header:
            if length == 1:  # mp4: the true size follows in 64 bits
                length = int.from_bytes(stream.read(8), "big") - 16
                begin += 8
            else:
                length = length - len(raw) if length else size - begin
            if length < 0:
                return
        yield chunk, begin, length
        if length < 0:
            return
        position = begin + length + (length & 1 if layout.even else 0)


def _check_matroska(head: bytes, size: int, name: str) -> None:
    """EBML header, then one Segment that should end with the file, unless it was written live (size all ones)."""
    reader = io.BytesIO(head)
    reader.seek(4)
    header_bytes = _ebml_number(reader)
    if header_bytes is None or header_bytes > len(head):
        return
    reader.seek(header_bytes, io.SEEK_CUR)
    if reader.read(4) != b"\x18\x53\x80\x67":
        return
    segment = _ebml_number(reader)
    if segment is not None and reader.tell() + segment > size + SLACK_BYTES:
        raise _cut_off(name, reader.tell() + segment, size)


def _ebml_number(reader: BinaryIO) -> int | None:
    """A variable-length integer (RFC 8794): leading zero bits of the first byte tell how many bytes follow."""
    first = reader.read(1)
    if not first or not first[0]:
        return None
    following = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> following)]) + reader.read(following), "big")
    return None if value == (1 << (7 * (following + 1))) - 1 else value


def _cut_off(name: str, claimed: int, size: int) -> AudioError:
    return AudioError(
        f"{name} is cut off: its header promises {claimed} bytes, the file has {size}",
        "Copy or download it again; to rescue what is there, open and save it in an audio editor.",
    )
