"""Voices from addresses of strangers: only voice files come out, and nothing of this machine's network is reached."""

from __future__ import annotations

import hashlib
import io
import socket
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from asset_server import AssetServer, asset_server

from rvc_spark.assets import AssetStore, StoreOptions, VoiceRequest
from rvc_spark.errors import ArchiveError, AssetError, ChecksumError, DownloadError, OutputError
from rvc_spark.transport import NetworkOptions, is_public

VOICE = b"weights" * 9000
INDEX = b"IwFl" + bytes(range(256)) * 40
HERE = VoiceRequest(allow_private=True)  # the test's server is on this machine


def make_zip(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def make_tar(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


BUNDLE = {
    "Singer/singer.pth": VOICE,
    "Singer/added_IVF9_Flat_singer.index": INDEX,
    "Singer/readme.txt": b"hi",
    "__MACOSX/Singer/._singer.pth": b"note",
    "Singer/run.exe": b"MZ",
}


@pytest.fixture
def server():
    with asset_server() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> AssetStore:
    network = NetworkOptions(stall_seconds=2, attempts=2, backoff_seconds=0.01)
    return AssetStore(tmp_path / "assets", options=StoreOptions(hub_cache=None, network=network))


def weights(store: AssetStore) -> list[str]:
    """What lies in the weights folder, apart from the lock."""
    folder = store.folder.root / "weights"
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"
    )


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_a_bundle_gives_its_voice_and_index_and_nothing_else(server: AssetServer, store: AssetStore, make) -> None:
    packed = make(BUNDLE)
    server.add("voice.zip", packed)
    files = store.fetch_voice(server.url("voice.zip"), HERE)
    assert [path.name for path in files.voices] == ["singer.pth"] and files.voices[0].read_bytes() == VOICE
    assert [path.name for path in files.indexes] == ["added_IVF9_Flat_singer.index"]
    assert files.sha256 == hashlib.sha256(packed).hexdigest()
    assert weights(store) == ["added_IVF9_Flat_singer.index", "singer.pth"]


def test_a_bare_checkpoint_and_a_bare_index_come_as_they_are(server: AssetServer, store: AssetStore) -> None:
    checkpoint = make_zip({"archive/data.pkl": b"x", "archive/data/0": VOICE, "archive/version": b"3"})
    server.add("My%20Voice.pth", checkpoint)
    assert store.fetch_voice(server.url("My%20Voice.pth?download=true"), HERE).voices[0].name == "My Voice.pth"
    server.add("x", INDEX)
    assert store.fetch_voice(server.url("x"), HERE).indexes[0].read_bytes() == INDEX
    server.add("old.pth", b"\x80\x02old pickle stream")
    assert store.fetch_voice(server.url("old.pth"), HERE).voices[0].name == "old.pth"


def test_names_and_folders_can_be_chosen(server: AssetServer, store: AssetStore, tmp_path: Path) -> None:
    server.add("v", make_zip(BUNDLE))
    request = replace(HERE, folder=tmp_path / "w", index_folder=tmp_path / "i", name="alto")
    files = store.fetch_voice(server.url("v"), request)
    assert files.voices == (tmp_path / "w/alto.pth",)
    assert files.indexes == (tmp_path / "i/alto-added_IVF9_Flat_singer.index",)
    for name in ("../x", "a/b", "", ".hidden", "con", "a\nb"):
        with pytest.raises((AssetError, ArchiveError)):
            store.fetch_voice(server.url("v"), replace(HERE, name=name))


def test_another_voice_of_that_name_is_not_overwritten(server: AssetServer, store: AssetStore) -> None:
    server.add("v", make_zip(BUNDLE))
    store.fetch_voice(server.url("v"), HERE)
    assert store.fetch_voice(server.url("v"), HERE).voices  # the very same is no conflict
    (store.folder.root / "weights/singer.pth").write_bytes(b"mine")
    before = weights(store)
    with pytest.raises(AssetError, match="another file"):
        store.fetch_voice(server.url("v"), HERE)
    assert (store.folder.root / "weights/singer.pth").read_bytes() == b"mine"
    assert [name for name in weights(store) if not name.startswith(".downloads")] == before
    store.fetch_voice(server.url("v"), replace(HERE, replace=True))
    assert (store.folder.root / "weights/singer.pth").read_bytes() == VOICE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (make_zip({"ok.pth": VOICE, "../../evil.pth": b"x"}), "outside"),
        (make_zip({"a/m.pth": b"1", "b/m.pth": b"2"}), "two files called m.pth"),
        (make_zip({"voice.zip": make_zip(BUNDLE)}), "no .pth.*voice.zip"),
        (make_zip({"readme.txt": b"x"}), "no .pth"),
        (make_zip({f"{n}.pth": b"x" for n in range(65)}), "65 voice files"),
        (make_zip({"bomb.pth": bytes(64 << 20)}), "bomb"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(50), "rar archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z archive"),
        (make_zip(BUNDLE)[:-40], "cut short|damaged"),
        (b"just text", "neither a voice nor an archive"),
        (b"<!doctype html><html>Sign in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
    ],
)
def test_what_is_no_voice_leaves_nothing_in_the_folder(
    server: AssetServer, store: AssetStore, content: bytes, words: str
) -> None:
    server.add("v", content)
    with pytest.raises((ArchiveError, AssetError), match=words):
        store.fetch_voice(server.url("v"), HERE)
    assert weights(store) == []


def test_size_and_digest_are_checked(server: AssetServer, store: AssetStore) -> None:
    server.add("v", make_zip(BUNDLE))
    with pytest.raises(DownloadError, match="limit of 100|limit is 100"):
        store.fetch_voice(server.url("v"), replace(HERE, max_bytes=100))
    server.add("endless", bytes(1 << 20), no_length=True)
    with pytest.raises(DownloadError, match="more than the 1000 bytes"):
        store.fetch_voice(server.url("endless"), replace(HERE, max_bytes=1000))
    with pytest.raises(ChecksumError):
        store.fetch_voice(server.url("v"), replace(HERE, sha256="0" * 64))
    with pytest.raises(AssetError, match="not a sha256"):
        store.fetch_voice(server.url("v"), replace(HERE, sha256="short"))


def test_addresses_of_this_machine_are_refused_unless_meant(server: AssetServer, store: AssetStore) -> None:
    server.add("v", make_zip(BUNDLE))
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(DownloadError, match="belongs to this machine"):
            store.fetch_voice(server.url("v", host=host))
    assert not server.requests


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/v.zip",
        "ftp://example.com/v",
        "file:///etc/passwd",
        "https://",
        "",
        "https://u:p@example.com/v",
        "https://exa mple.com/",
        "https://example.com:99999/v",
        "https://[::1/v",
        "javascript:alert(1)",
    ],
)
def test_only_plain_https_addresses_are_fetched(store: AssetStore, url: str) -> None:
    with pytest.raises(AssetError):
        store.fetch_voice(url, HERE)


@pytest.mark.parametrize(
    "host",
    ["10.0.0.5", "192.168.1.1", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "[fe80::1]", "2130706433", "0"],
)
def test_private_ranges_are_refused_however_they_are_written(store: AssetStore, host: str) -> None:
    with pytest.raises(DownloadError, match="belongs to this machine|looked up"):
        store.fetch_voice(f"https://{host}/v.zip")


def test_a_name_that_has_a_private_address_as_well_is_refused(
    store: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(host: str, port: int, **options: object) -> list:
        return [(socket.AF_INET, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.1.2.3")]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(DownloadError, match="10.1.2.3"):
        store.fetch_voice("https://rebinding.example/v.zip")


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "100.64.0.1", "224.0.0.1", "240.0.0.1", "fc00::1", "fe80::1%eth0", "64:ff9b::7f00:1", "2002:7f00:1::"],
)
def test_special_addresses_are_not(address: str) -> None:
    assert not is_public(address)


def test_an_interrupted_voice_is_resumed(server: AssetServer, store: AssetStore) -> None:
    packed = make_zip({"v.pth": hashlib.sha512(b"x").digest() * 4000})
    server.add("v", packed, break_after=[500, 0, 0])
    with pytest.raises(DownloadError):
        store.fetch_voice(server.url("v"), HERE)
    assert store.fetch_voice(server.url("v"), HERE).voices
    assert server.asked("v")[-1].range == "bytes=500-" and weights(store) == ["v.pth"]


def test_google_drive_needs_a_digest_and_unwritable_folders_are_named(store: AssetStore, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="sha256"):
        store.fetch_voice("https://drive.google.com/file/d/1a2b3c4d5e6f7g8h/view?usp=sharing")
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        store.fetch_voice("https://example.com/v.zip", VoiceRequest(folder=tmp_path / "taken"))
