"""Archives: what is let through is whole, what is refused leaves nothing behind."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rvc_spark.archives import ArchiveLimits, archive_kind, safe_name, unpack, walk
from rvc_spark.errors import ArchiveError


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content) if info.isreg() else info.size
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def plain(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def assert_refused(archive: Path, match: str, **options: object) -> None:
    """Unpacking fails with a named error, and the folder looks as it did before."""
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(ArchiveError, match=match):
        unpack(archive, archive.parent / "out", **options)
    assert sorted(archive.parent.rglob("*")) == before


CONTENT = {"voice.pth": b"weights" * 1000, "sub/added.index": bytes(range(256)) * 50, "empty.txt": b""}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        archive = make_zip(tmp_path / "a", CONTENT)
    else:
        members = [(plain(f"./{name}"), content) for name, content in CONTENT.items()]
        archive = make_tar(tmp_path / "a", members, "w:gz" if kind == "tar.gz" else "w")
    assert archive_kind(archive) == kind
    written = unpack(archive, tmp_path / "new" / "out")
    assert {path.relative_to(tmp_path / "new/out").as_posix(): path.read_bytes() for path in written} == CONTENT
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_windows_made_zip_with_backslashes_keeps_its_folders(tmp_path: Path) -> None:
    (written,) = unpack(make_zip(tmp_path / "a.zip", {"folder\\voice.pth": b"x"}), tmp_path / "out")
    assert written == tmp_path / "out" / "folder" / "voice.pth"


def test_keep_writes_only_what_is_wanted_and_says_when_nothing_is(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", CONTENT)
    (written,) = unpack(archive, tmp_path / "out", keep=lambda name: name.suffix == ".pth")
    assert written.name == "voice.pth" and len(list((tmp_path / "out").rglob("*"))) == 1
    with pytest.raises(ArchiveError, match="none of the files"):
        unpack(archive, tmp_path / "other", keep=lambda name: False)
    assert not (tmp_path / "other").exists()


def test_a_folder_with_files_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("keep")
    assert_refused(make_zip(tmp_path / "a.zip", CONTENT), "not an empty folder")
    assert (tmp_path / "out" / "mine").read_text() == "keep"


HOSTILE_NAMES = [
    "../evil", "a/../../evil", "..\\evil", "/etc/passwd", "\\\\host\\share\\x", "C:\\evil", "C:evil", "a.pth:stream",
    "a\nb", "a\x1b[31mb", "a\x7fb", "gpj\u202egnp.exe", "con", "sub/NUL.txt", "com1.pth", "voice.pth.", "voice.pth ",
    "x" * 241, "/".join("a" * 17),
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_hostile_names_are_refused_even_after_good_members(tmp_path: Path, name: str, kind: str) -> None:
    members = {"good.txt": b"good", name: b"evil"}
    if kind == "zip":
        archive = make_zip(tmp_path / "a", members)
    else:
        archive = make_tar(tmp_path / "a", [(plain(name), content) for name, content in members.items()])
    assert_refused(archive, "archive")
    assert not (tmp_path.parent / "evil").exists()


def test_a_nul_in_a_zip_name_is_not_cut_off(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"voiceX.pth": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"voiceX.pth", b"voice\0.pth"))
    assert_refused(archive, "control characters")


@pytest.mark.parametrize("pair", [("a.txt", "A.TXT"), ("a", "a/b"), ("Sub/a", "sub/b"), ("é", "e\u0301")])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_two_members_for_one_place_are_refused(tmp_path: Path, pair: tuple[str, str], kind: str) -> None:
    if kind == "zip":
        archive = make_zip(tmp_path / "a", dict.fromkeys(pair, b"x"))
    else:
        archive = make_tar(tmp_path / "a", [(plain(name), b"x") for name in pair])
    assert_refused(archive, "two members")


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    assert_refused(make_tar(tmp_path / "a", [(plain("a"), b"1"), (plain("a"), b"2")]), "two members")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "b", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    assert_refused(tmp_path / "b", "two members")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"S"])
def test_tar_links_devices_and_sparse_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = make_tar(tmp_path / "a", [(plain("ok"), b"x"), (plain("bad", kind, "../../etc"), b"")])
    assert_refused(archive, "archive|tar")


def test_zip_symlinks_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert_refused(tmp_path / "a", "link or device")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_stops_early_in_bounded_memory(tmp_path: Path, kind: str) -> None:
    size = 200 << 20
    archive = tmp_path / "bomb"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped, zipped.open("zeros", "w") as member:
            for _ in range(200):
                member.write(bytes(1 << 20))
    else:
        info = plain("zeros")
        info.size = size
        with tarfile.open(archive, "w:gz", compresslevel=9) as tar:
            tar.addfile(info, io.BufferedReader(_Zeros(size)))
    tracemalloc.start()
    assert_refused(archive, "bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


class _Zeros(io.RawIOBase):
    """Zeros without holding them."""

    def __init__(self, size: int) -> None:
        self.left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        count = min(len(buffer), self.left)
        buffer[:count] = bytes(count)
        self.left -= count
        return count


def test_limits_count_what_comes_out_not_what_headers_say(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"big": bytes(range(256)) * 400})
    raw = bytearray(archive.read_bytes())
    struct.pack_into("<L", raw, raw.index(b"PK\x01\x02") + 24, 10)  # the directory claims 10 bytes
    archive.write_bytes(raw)
    assert_refused(archive, "damaged")
    big = make_zip(tmp_path / "b.zip", {"big": bytes(5000)})
    assert_refused(big, "more than 4000", limits=ArchiveLimits(total_bytes=4000))
    many = make_zip(tmp_path / "c.zip", {f"{n}": b"" for n in range(30)})
    assert_refused(many, "limits are 20", limits=ArchiveLimits(members=20))
    many = make_tar(tmp_path / "c.tar", [(plain(f"{n}"), b"") for n in range(30)])
    assert_refused(many, "more than 20 members", limits=ArchiveLimits(members=20))


def test_a_zip_that_hides_its_member_count_is_still_counted(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {f"{n}": b"" for n in range(30)})
    raw = bytearray(archive.read_bytes())
    struct.pack_into("<HH", raw, raw.rindex(b"PK\x05\x06") + 8, 1, 1)
    archive.write_bytes(raw)
    assert_refused(archive, "more than 20 members", limits=ArchiveLimits(members=20))


def test_huge_tar_headers_are_not_read_into_memory(tmp_path: Path) -> None:
    header = plain("x", tarfile.XHDTYPE)
    header.size = 1 << 32
    archive = tmp_path / "a.tar"
    archive.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    assert_refused(archive, "header of")
    chain = b"".join(_gnu_longname() for _ in range(5000))
    archive.write_bytes(chain + bytes(1024))
    assert_refused(archive, "damaged|headers")


def _gnu_longname() -> bytes:
    header = plain("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    header.size = 5
    return header.tobuf(tarfile.GNU_FORMAT) + b"name\0".ljust(512, b"\0")


def test_skipping_a_member_still_counts_its_bytes(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "a", [(plain("skipped"), bytes(64 << 20)), (plain("voice.pth"), b"x")])
    assert_refused(archive, "bomb", keep=lambda name: name.suffix == ".pth")


def test_encrypted_and_exotic_compression_are_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": b"secret"})
    raw = bytearray(archive.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(raw)
    assert_refused(archive, "encrypted")
    assert_refused(make_zip(tmp_path / "b.zip", {"a": b"x" * 99}, zipfile.ZIP_LZMA), "compression 14")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b" + bytes(20), b"PK\x03\x04" + bytes(40), b"PK\x05\x06"])
def test_what_is_no_archive_is_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert_refused(tmp_path / "a", "archive|zip|damaged")
    with pytest.raises(ArchiveError, match="cannot be read"):
        unpack(tmp_path / "missing.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "w", "w:gz"])
def test_truncation_at_any_point_is_noticed(tmp_path: Path, kind: str) -> None:
    members = {"a": bytes(range(256)) * 8, "b": zlib.compress(bytes(range(256)) * 20), "c": b"end" * 700}
    whole = tmp_path / "whole"
    if kind == "zip":
        make_zip(whole, members, zipfile.ZIP_STORED)
    else:
        make_tar(whole, [(plain(name), content) for name, content in members.items()], kind)
    data = whole.read_bytes()
    content_end = len(data.rstrip(b"\0")) if kind == "w" else len(data) - 1
    content_end = -(-content_end // 512) * 512 if kind == "w" else content_end
    cut = tmp_path / "cut"
    for length in range(1, content_end, max(1, content_end // 60)):
        cut.write_bytes(data[:length])
        assert_refused(cut, ".")


def test_a_wrong_checksum_inside_is_noticed(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": b"spoken words"}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"spoken", b"broken"))
    assert_refused(archive, "damaged")


def test_an_archive_in_an_archive_stays_closed(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"voice.pth": b"x"})
    (written,) = unpack(make_zip(tmp_path / "a.zip", {"inner.zip": inner.read_bytes()}), tmp_path / "out")
    assert written.name == "inner.zip"


def test_walk_streams_in_pieces(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(1 << 20)}, zipfile.ZIP_STORED)
    ((name, sizes),) = [(member.name, [len(block) for block in member.blocks()]) for member in walk(archive)]
    assert name == PurePosixPath("a") and sum(sizes) == 1 << 20 and max(sizes) <= 256 << 10


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_a_safe_name_stays_inside(name: str) -> None:
    try:
        path = safe_name(name)
    except ArchiveError:
        return
    if path is not None:
        assert not path.is_absolute() and ".." not in path.parts and "\\" not in str(path)
        inside = (Path("/base") / path).resolve()
        assert inside.is_relative_to("/base")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["zip", "w", "w:gz"]))
def test_damaged_archives_end_in_named_errors_only(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    archive = tmp_path / "a"
    if kind == "zip":
        make_zip(archive, CONTENT)
    else:
        make_tar(archive, [(plain(name), content) for name, content in CONTENT.items()], kind)
    raw = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(raw)
    try:
        total = sum(len(block) for member in walk(archive) for block in member.blocks())
    except ArchiveError:
        return
    assert total <= 1 << 20
