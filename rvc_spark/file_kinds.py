"""What a file is, told from its first bytes, when somebody gave it as a model by mistake.

Knows magic bytes and the words a newcomer needs; refuses to open anything or to know about tensors.
"""

from __future__ import annotations

_AGAIN = "Download the file again."
_PAGE = "Download the file itself: the 'raw' or 'download' link, not the page that shows it."
_UNPACK = "Unpack it and give the .pth file inside."

# (first bytes, what it is, what to do). GPT-SoVITS marks its newer files by overwriting the letters PK of the zip.
_BY_START: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, the note that stands for a file", "Fetch it with `git lfs pull`."),
    *((marker + b"\x03\x04", "a GPT-SoVITS model", "Give an RVC voice.") for marker in (
        b"00", b"01", b"02", b"03", b"04", b"05", b"06", b"07")),
    *((code, "a faiss index", "Give it as the index; the voice is the .pth file.") for code in (
        b"IwFl", b"IxF2", b"IxFI", b"IwPQ", b"IxPT", b"IwSq", b"IxSQ", b"IHNf", b"IxMp", b"IvFl")),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (b"RIFF", "a sound file", "Give the model here and the sound as the source."),
    (b"fLaC", "a sound file", "Give the model here and the sound as the source."),
    (b"OggS", "a sound file", "Give the model here and the sound as the source."),
    (b"ID3", "a sound file", "Give the model here and the sound as the source."),
    (b"\x89PNG", "a picture", "Give the model file."),
    (b"\xff\xd8\xff", "a picture", "Give the model file."),
    (b"%PDF", "a PDF document", "Give the model file."),
    (b"\x89HDF", "an HDF5 file", "Give a model saved by torch."),
    (b"GGUF", "a GGUF language model", "Give a model saved by torch."),
    (b"\x93NUMPY", "a numpy array", "Give a model saved by torch."),
    (b"\x7fELF", "a program", "Give the model file."),
    (b"MZ", "a program", "Give the model file."),
)


def other_kind(head: bytes) -> tuple[str, str] | None:
    """(what it is, what to do) for a known file kind that is no tensor file; None when the start tells nothing.

    `head`: the first 512 bytes or so.
    """
    for start, kind, cure in _BY_START:
        if head.startswith(start):
            return kind, cure
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<script")):
        return "a web page", _PAGE
    if len(head) > 262 and head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if text.startswith((b"{", b"[")):
        return "a JSON text", "Give the model file."
    if not head.strip(b"\0"):
        return "nothing but zeros, an unfinished download", _AGAIN
    if _is_text(head):
        return "a text", _PAGE
    return None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as problem:
        if problem.start < len(head) - 3:  # a character cut in two by the end of what was read is no objection
            return False
        text = head[: problem.start].decode()
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n" for letter in text)
