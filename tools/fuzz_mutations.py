"""Spoiling files on purpose: by bytes, by zip entries, and by the instructions of a pickle inside.

Blind changes of a zip rarely get past its checksums, so an archive is also taken apart, its pickle changed instruction
by instruction, and put together again with correct checksums.
"""

from __future__ import annotations

import io
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable

NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, -(2**63))
NAMES = (
    b"cos\nsystem\n",
    b"cbuiltins\nbytearray\n",
    b"cbuiltins\neval\n",
    b"cbuiltins\nset\n",
    b"ccollections\nCounter\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch\nTensor\n",
    b"ctorch\nDoubleStorage\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n",
    b"ctorch._utils\n_rebuild_qtensor\n",
    b"cargparse\nNamespace\n",
    b"cfairseq.data.dictionary\nDictionary\n",
)
BARE = tuple(bytes([code]) for code in b"02N]})(tRbQ\x81as")  # instructions without an argument
EDGE = 600  # bytes at either end where headers and directories lie
MAX_BYTES = 4 << 20


def mutate(seeds: list[bytes], rng: random.Random) -> bytes:
    """One spoiled file made of the seeds."""
    data = rng.choice(seeds)
    ways: list[Callable[[bytes], bytes]] = [lambda x: spoil_bytes(x, seeds, rng)]
    if data[:2] == b"PK":
        ways += [lambda x: spoil_archive(x, rng)] * 3
    elif data[:1] == b"\x80":
        ways += [lambda x: spoil_pickle(x, rng)] * 2
    try:
        spoiled = rng.choice(ways)(data)
    except (zipfile.BadZipFile, ValueError, struct.error, EOFError, OverflowError):  # no longer a file of its kind
        spoiled = spoil_bytes(data, seeds, rng)
    return spoiled[:MAX_BYTES]


# --- bytes -----------------------------------------------------------------------------------------------------------


def spoil_bytes(data: bytes, seeds: list[bytes], rng: random.Random) -> bytes:
    """A few changes of bytes anywhere, more often near the ends."""
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        if not spoiled:
            break
        at = _place(len(spoiled), rng)
        span = min(rng.choice((1, 2, 4, 8, 40, 1000)), len(spoiled) - at)
        match rng.randrange(9):
            case 0:
                spoiled[at] ^= 1 << rng.randrange(8)
            case 1:
                spoiled[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                _overwrite(spoiled, at, rng)
            case 3:
                del spoiled[at:]
            case 4:
                del spoiled[at : at + span]
            case 5:
                spoiled[at:at] = spoiled[at : at + span] * rng.choice((1, 2, 50))
            case 6:
                spoiled[at:at] = rng.randbytes(span)
            case 7:
                other = rng.randrange(len(spoiled))
                spoiled[at : at + span], spoiled[other : other + span] = (
                    spoiled[other : other + span],
                    spoiled[at : at + span],
                )
            case _:
                donor = rng.choice(seeds)
                start = rng.randrange(len(donor))
                spoiled[at : at + span] = donor[start : start + span]
    return bytes(spoiled)


def _place(length: int, rng: random.Random) -> int:
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randrange(min(length, EDGE))
    return length - 1 - rng.randrange(min(length, EDGE)) if kind == 1 else rng.randrange(length)


def _overwrite(spoiled: bytearray, at: int, rng: random.Random) -> None:
    width = rng.choice((2, 4, 8))
    if at + width <= len(spoiled):
        spoiled[at : at + width] = (rng.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")


# --- archives --------------------------------------------------------------------------------------------------------


def spoil_archive(data: bytes, rng: random.Random) -> bytes:
    """Take a torch zip apart, change its pickle or its entries, and close it again with true checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    pickled = [number for number, (name, _) in enumerate(entries) if name.endswith(".pkl")]
    if pickled and rng.random() < 0.75:
        number = rng.choice(pickled)
        entries[number] = (entries[number][0], spoil_pickle(entries[number][1], rng))
    else:
        number = rng.randrange(len(entries))
        name, content = entries[number]
        match rng.randrange(5):
            case 0:
                del entries[number]
            case 1:
                entries[number] = (name, content[: rng.randrange(len(content) + 1)])
            case 2:
                entries[number] = (name, content + bytes(rng.choice((1, 2, 4096))))
            case 3:
                entries[number] = (rng.choice((name + "x", "../" + name, name.replace("data", "code"), "")), content)
            case _:
                entries[number] = (name, bytes(rng.randbytes(min(len(content), 64))) + content[64:])
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name or "none", content)
    return buffer.getvalue()


# --- pickles ---------------------------------------------------------------------------------------------------------


def spoil_pickle(data: bytes, rng: random.Random) -> bytes:
    """Delete, repeat, swap or replace single instructions; what follows the pickle's end is kept."""
    starts = [position for _, _, position in pickletools.genops(data)]
    ends = [*starts[1:], starts[-1] + 1]
    steps = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    rest = data[ends[-1] :]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(steps))
        match rng.randrange(6):
            case 0:
                del steps[at]
            case 1:
                steps[at:at] = steps[at : at + rng.choice((1, 3, 30))] * rng.choice((1, 1, 2, 200))
            case 2:
                other = rng.randrange(len(steps))
                steps[at], steps[other] = steps[other], steps[at]
            case 3:
                _replace(steps, [n for n, step in enumerate(steps) if step[:1] in b"KMJ\x8a"], _integer(rng), rng)
            case 4:
                _replace(steps, [n for n, step in enumerate(steps) if step[:1] == b"c"], rng.choice(NAMES), rng)
            case _:
                steps.insert(at, rng.choice(BARE))
        if not steps:
            steps = [b"N", b"."]
    return b"".join(steps) + rest


def _integer(rng: random.Random) -> bytes:
    value = rng.choice(NUMBERS)
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def _replace(steps: list[bytes], where: list[int], new: bytes, rng: random.Random) -> None:
    if where:
        steps[rng.choice(where)] = new
