"""Profiles on their way to another machine: the same there as here, and nothing hostile gets in."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from profile_maker import make_profile

from rvc_spark.errors import ArchiveError, ProfileError, ProfileExistsError, RvcSparkError
from rvc_spark.profiles.profile_archive import export_profile, import_profile
from rvc_spark.profiles.profile_names import new_id
from rvc_spark.profiles.profile_store import ProfileStore


@pytest.fixture
def here(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "here")


@pytest.fixture
def there(tmp_path: Path) -> ProfileStore:
    return ProfileStore(tmp_path / "there")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def left_behind(store: ProfileStore) -> list[str]:
    """What there is besides locks; nothing should be left by a refusal."""
    if not store.root.exists():
        return []
    return [path.name for path in store.root.iterdir() if path.name not in (".locks", ".tombstones")]


def test_there_as_here(here: ProfileStore, there: ProfileStore, tmp_path: Path) -> None:
    profile = make_profile(here, "Zoë Berg", transcript="Hello there.")
    here.link("Zoë Berg", voice="zoe", index="/somewhere/on/this/machine.index")
    path = export_profile(here.get("Zoë Berg"), tmp_path)
    assert path.name == "Zoë_Berg.rvcprofile.zip" and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert b"this/machine" not in path.read_bytes()
    taken = import_profile(there, path)
    taken.check()
    assert (taken.id, taken.name, taken.transcript) == (profile.id, "Zoë Berg", "Hello there.")
    assert taken.record.consent == profile.record.consent and taken.record.links.index is None
    for name in profile.record.files:
        assert (taken.folder / name).read_bytes() == (profile.folder / name).read_bytes()
        assert stat.S_IMODE((taken.folder / name).stat().st_mode) & 0o077 == 0
    assert export_profile(taken, tmp_path / "again.zip").read_bytes() == path.read_bytes()


def test_an_id_a_name_and_a_tombstone_are_respected(here: ProfileStore, there: ProfileStore, tmp_path: Path) -> None:
    path = export_profile(make_profile(here, "Anna"), tmp_path / "anna.zip")
    with pytest.raises(ProfileExistsError, match="is here already"):
        import_profile(here, path)
    make_profile(there, "ANNA")
    with pytest.raises(ProfileExistsError, match="already"):
        import_profile(there, path)
    taken = import_profile(there, path, name="Anna of the archive")
    assert taken.name == "Anna of the archive" and len(there.profiles()) == 2
    there.delete(taken.id)
    with pytest.raises(ProfileExistsError, match="--restore"):
        import_profile(there, path, name="Anna again")
    assert import_profile(there, path, name="Anna again", restore=True).id == taken.id
    assert there.tombstone(taken.id) is None


def test_a_damaged_profile_is_not_exported(here: ProfileStore, tmp_path: Path) -> None:
    profile = make_profile(here, "Anna")
    content = bytearray((profile.folder / "reference.wav").read_bytes())
    content[-1] ^= 1
    (profile.folder / "reference.wav").write_bytes(bytes(content))
    with pytest.raises(ProfileError, match=r"reference\.wav"):
        export_profile(profile, tmp_path / "anna.zip")
    assert not (tmp_path / "anna.zip").exists() and not list(tmp_path.glob(".*.part"))


HOSTILE_MEMBERS = [
    "../escaped.txt", "/etc/cron.d/x", "samples/../../x", "..\\x", "C:/x", "samples/a/b/c.flac", "derived/speaker.json",
    "run.sh", "samples/01.sh", "\u202egpj.exe", "originals/01.longer", "samples/001.flac", ".alive", "con.json",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_MEMBERS, ids=ascii)
def test_a_member_that_no_profile_has_is_refused(here, there, tmp_path: Path, name: str) -> None:
    files = members(export_profile(make_profile(here, "Anna"), tmp_path / "anna.zip"))
    for order in ({**files, name: b"x"}, {name: b"x", **files}):
        with pytest.raises(RvcSparkError):
            import_profile(there, packed(tmp_path / "hostile.zip", order))
    assert left_behind(there) == [] and not (tmp_path / "escaped.txt").exists() and not (tmp_path / "x").exists()


def test_content_that_is_not_what_the_record_says_is_refused(here, there, tmp_path: Path) -> None:
    files = members(export_profile(make_profile(here, "Anna"), tmp_path / "anna.zip"))
    record = json.loads(files["profile.json"])
    bad: list[dict[str, bytes]] = [
        {**files, "samples/01.flac": files["samples/01.flac"][:-1] + b"!"},
        {**files, "samples/01.flac": files["reference.wav"]},
        {name: content for name, content in files.items() if name != "reference.wav"},
        {name: content for name, content in files.items() if name != "profile.json"},
        {**files, "samples/02.flac": files["samples/01.flac"]},
        {**files, "profile.json": b"{}"},
        {**files, "profile.json": json.dumps({**record, "id": "../../x"}).encode()},
        {**files, "profile.json": json.dumps({**record, "name": "../../x"}).encode()},
        {**files, "profile.json": json.dumps({**record, "consent": None}).encode()},
        {**files, "profile.json": b" " * (2 << 20) + files["profile.json"]},
        {},
    ]
    for number, content in enumerate(bad):
        with pytest.raises(RvcSparkError):
            import_profile(there, packed(tmp_path / f"bad{number}.zip", content))
        assert left_behind(there) == [], number


def test_sound_that_is_not_sound_is_refused_although_its_hash_is_right(here, there, tmp_path: Path) -> None:
    import hashlib

    files = members(export_profile(make_profile(here, "Anna"), tmp_path / "anna.zip"))
    record = json.loads(files["profile.json"])
    content = b"#!/bin/sh\n" * 100
    record["files"]["samples/01.flac"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    changed = {**files, "samples/01.flac": content, "profile.json": json.dumps(record).encode()}
    with pytest.raises(RvcSparkError, match=r"01\.flac"):
        import_profile(there, packed(tmp_path / "script.zip", changed))
    assert left_behind(there) == []


def test_links_bombs_and_broken_archives_are_refused(here, there, tmp_path: Path) -> None:
    path = export_profile(make_profile(here, "Anna"), tmp_path / "anna.zip")
    files = members(path)
    link = zipfile.ZipInfo("reference.wav")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    linked = tmp_path / "link.zip"
    with zipfile.ZipFile(linked, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("profile.json", files["profile.json"])
    bomb = packed(tmp_path / "bomb.zip", {**files, "originals/02.wav": bytes(200 << 20)}, zipfile.ZIP_DEFLATED)
    short = tmp_path / "short.zip"
    short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    tar = tmp_path / "link.tar"
    with tarfile.open(tar, "w") as archive:
        info = tarfile.TarInfo("samples")
        info.type, info.linkname = tarfile.SYMTYPE, str(tmp_path)
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("samples/01.flac"), io.BytesIO(b""))
    text = tmp_path / "text.zip"
    text.write_text("no archive")
    for hostile in (linked, bomb, short, tar, text):
        with pytest.raises(ArchiveError):
            import_profile(there, hostile)
        assert left_behind(there) == [], hostile.name
    for gone in (tmp_path / "nobody.zip", tmp_path):
        with pytest.raises(ProfileError):
            import_profile(there, gone)


def test_an_archive_that_claims_gigabytes_is_refused_before_they_are_read(there, tmp_path: Path) -> None:
    """Two gigabytes of nothing cost their maker a sparse file; they must cost the reader no more."""
    huge = tmp_path / "huge.zip"
    with huge.open("wb") as file:
        file.truncate(2 << 30)
    with pytest.raises(ArchiveError):
        import_profile(there, huge)
    many = packed(tmp_path / "many.zip", {f"samples/{number:02d}.flac.{number}": b"" for number in range(5_000)})
    with pytest.raises(ArchiveError, match="members"):
        import_profile(there, many)
    assert left_behind(there) == []


def test_an_import_that_loses_the_race_leaves_the_winner(here, there, tmp_path: Path, monkeypatch) -> None:
    path = export_profile(make_profile(here, "Anna"), tmp_path / "anna.zip")
    real = os.rename
    moved: list[str] = []

    def rename(source, target) -> None:
        if not moved and ".creating-" in str(source):
            moved.append(str(target))
            Path(target).mkdir()
            (Path(target) / "x").write_text("somebody was faster")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(RvcSparkError):
        import_profile(there, path)
    assert left_behind(there) == [Path(moved[0]).name] and not new_id() == Path(moved[0]).name
