"""One file over a real connection: what breaks is resumed, what is wrong is never kept."""

from __future__ import annotations

import errno
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from asset_place import CONTENT, IMPATIENT, SHA256, Fetcher
from asset_server import AssetServer, asset_server

from rvc_spark.errors import ChecksumError, DiskSpaceError, DownloadError
from rvc_spark.part_file import Disk, git_blob_sha1, record_path
from rvc_spark.transport import Cancelled


@pytest.fixture
def server():
    with asset_server() as running:
        yield running


@pytest.fixture
def fetch(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "file.bin.part")


def test_whole_file_with_progress(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT)
    assert fetch(server.url("f")) == CONTENT
    assert fetch.messages[-1] == "checked"
    assert server.asked("f")[0].headers["accept-encoding"] == "identity"


DATE = {"etag": None, "last_modified": "Mon, 01 Jan 2024 00:00:00 GMT"}


@pytest.mark.parametrize("validator", [{"etag": '"a"'}, DATE])
def test_a_broken_connection_is_resumed_where_it_broke(server: AssetServer, fetch: Fetcher, validator: dict) -> None:
    server.add("f", CONTENT, break_after=[100_000, 50_000], **validator)
    assert fetch(server.url("f")) == CONTENT
    first, second, third = server.asked("f")
    assert (first.range, second.range, third.range) == (None, "bytes=100000-", "bytes=150000-")
    assert second.headers["if-range"] == (validator["etag"] or DATE["last_modified"])
    assert server.sent == len(CONTENT)


def test_another_process_goes_on_with_the_part(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, break_after=[100_000] * 3)
    with pytest.raises(DownloadError, match="without progress"):
        fetch(server.url("f"), network=replace(IMPATIENT, attempts=1))
    assert fetch.part.stat().st_size == 100_000 and json.loads(record_path(fetch.part).read_text())["etag"] == '"v1"'
    server.files["/f"].break_after = []
    assert Fetcher(fetch.part)(server.url("f")) == CONTENT
    assert server.sent == len(CONTENT)


def test_a_changed_file_is_fetched_anew(server: AssetServer, fetch: Fetcher) -> None:
    served = server.add("f", b"old" * 100_000, break_after=[100_000])
    with pytest.raises(DownloadError):
        fetch(server.url("f"), network=replace(IMPATIENT, attempts=1), sha256=None, bytes=None)
    served.content, served.etag = CONTENT, '"v2"'
    assert fetch(server.url("f"), sha256=None, bytes=None) == CONTENT


def test_without_validator_and_without_digest_nothing_is_resumed(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, etag='W/"weak"', break_after=[100_000])
    assert fetch(server.url("f"), sha256=None) == CONTENT
    assert [request.range for request in server.asked("f")] == [None, None]


@pytest.mark.parametrize("ranges", ["ignore", "shift", "unnamed", "other-total", "refuse"])
def test_servers_that_answer_ranges_wrongly(server: AssetServer, fetch: Fetcher, ranges: str) -> None:
    server.add("f", CONTENT, ranges=ranges, break_after=[100_000])
    assert fetch(server.url("f")) == CONTENT


def test_a_mirror_takes_over_in_the_middle(server: AssetServer, fetch: Fetcher) -> None:
    server.add("a", CONTENT, etag='"a"', break_after=[100_000] * 3, statuses=[])
    server.add("b", CONTENT, etag='"b"')
    assert fetch(server.url("a"), server.url("b"), network=replace(IMPATIENT, attempts=1)) == CONTENT
    assert server.asked("b")[0].range == "bytes=100000-" and "if-range" not in server.asked("b")[0].headers


def test_a_mirror_with_another_file_of_the_same_size_costs_one_clean_try(server: AssetServer, fetch: Fetcher) -> None:
    server.add("bad", bytes(len(CONTENT)), break_after=[100_000] * 3)
    server.add("good", CONTENT)
    assert fetch(server.url("bad"), server.url("good"), network=replace(IMPATIENT, attempts=1)) == CONTENT
    assert [request.range for request in server.asked("good")] == ["bytes=100000-", None]


def test_a_wrong_hash_is_never_kept(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", bytes(len(CONTENT)))
    with pytest.raises(ChecksumError, match=SHA256):
        fetch(server.url("f"))
    assert not fetch.part.exists() and not record_path(fetch.part).exists()
    assert len(server.asked("f")) == 1


def test_a_finished_part_with_a_wrong_hash_is_replaced_without_a_416_loop(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, break_after=[399_999])
    with pytest.raises(DownloadError):
        fetch(server.url("f"), network=replace(IMPATIENT, attempts=1))
    fetch.part.write_bytes(bytes(len(CONTENT)))
    assert fetch(server.url("f")) == CONTENT


def test_a_finished_part_needs_no_request(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT)
    fetch(server.url("f"))
    assert fetch(server.url("f")) == CONTENT and len(server.asked("f")) == 1


def test_a_part_without_record_or_longer_than_the_file_is_worthless(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT)
    for rubbish in (b"", b"[]", b'{"url": 1}', b"\xff" * 10, b"[" * 100_000):
        fetch.part.write_bytes(bytes(500))
        record_path(fetch.part).write_bytes(rubbish)
        assert fetch(server.url("f")) == CONTENT
        fetch.part.write_bytes(CONTENT + b"more")
        assert fetch(server.url("f")) == CONTENT


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_busy_servers_are_asked_again(server: AssetServer, fetch: Fetcher, status: int) -> None:
    server.add("f", CONTENT, statuses=[(status, {"Retry-After": "86400"}), (status, {"Retry-After": "soon"})])
    assert fetch(server.url("f")) == CONTENT
    assert len(server.asked("f")) == 3


def test_patience_ends(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, statuses=[(503, {})] * 9)
    with pytest.raises(DownloadError, match="503.*3 attempts"):
        fetch(server.url("f"))
    assert len(server.asked("f")) == 3


@pytest.mark.parametrize(
    ("status", "words"), [(404, "not there"), (410, "not there"), (401, "HF_TOKEN"), (403, "HF_TOKEN"), (418, "418")]
)
def test_final_answers_are_not_asked_again(server: AssetServer, fetch: Fetcher, status: int, words: str) -> None:
    server.add("f", CONTENT, statuses=[(status, {})] * 9)
    with pytest.raises(DownloadError, match=words):
        fetch(server.url("f"))
    assert len(server.asked("f")) == 1


def test_a_stalled_and_a_dripping_server_count_the_same(server: AssetServer, fetch: Fetcher) -> None:
    server.add("stall", CONTENT, stall_after=[100_000])
    assert fetch(server.url("stall")) == CONTENT
    assert any("stalled" in message for message in fetch.messages)
    server.add("drip", CONTENT, block=1, pause=0.05, etag='"drip"')
    fetch.part.unlink()
    with pytest.raises(DownloadError, match="stalled"):
        fetch(server.url("drip"), network=replace(IMPATIENT, attempts=1))


def test_a_slow_server_is_not_a_stalled_one(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, block=20_000, pause=0.05)
    assert fetch(server.url("f"), network=replace(IMPATIENT, stall_seconds=0.4, attempts=1)) == CONTENT


@pytest.mark.parametrize("claimed", [len(CONTENT) - 1, len(CONTENT) + 1, 10**12])
def test_a_length_that_is_not_the_catalogues_is_refused(server: AssetServer, fetch: Fetcher, claimed: int) -> None:
    server.add("f", CONTENT, claimed_length=claimed)
    with pytest.raises(DownloadError, match=f"offers {claimed} bytes"):
        fetch(server.url("f"))


def test_more_than_promised_stops_the_stream(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT + bytes(1 << 22), no_length=True)
    with pytest.raises(DownloadError, match="more than the 400000 bytes"):
        fetch(server.url("f"))
    with pytest.raises(DownloadError, match="more than the 1000 bytes"):
        fetch(server.url("f"), sha256=None, bytes=None, max_bytes=1000)
    assert not fetch.part.exists()


def test_less_than_promised_without_a_length_is_noticed(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, no_length=True, break_after=[10_000])
    assert fetch(server.url("f")) == CONTENT


PAGES = [b"<!DOCTYPE html><html>login</html>", b"\xef\xbb\xbf\n <HTML>", b"<head>"]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 400000\n"


@pytest.mark.parametrize(("content", "words"), [*((page, "web page") for page in PAGES), (POINTER, "LFS pointer")])
@pytest.mark.parametrize("known", [True, False])
def test_pages_and_pointers_are_named(
    server: AssetServer, fetch: Fetcher, content: bytes, words: str, known: bool
) -> None:
    server.add("f", content)
    with pytest.raises(DownloadError, match=words):
        fetch(server.url("f"), **({} if known else {"sha256": None, "bytes": None}))
    assert not fetch.part.exists()


def test_a_page_by_its_type_and_a_compressed_transfer_are_refused(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, content_type="text/html; charset=utf-8")
    with pytest.raises(DownloadError, match="web page"):
        fetch(server.url("f"))
    server.add("f", CONTENT, headers={"Content-Encoding": "gzip"})
    with pytest.raises(DownloadError, match="compresses"):
        fetch(server.url("f"))


def test_the_hubs_digest_proves_large_files_and_git_ids_small_ones(server: AssetServer, fetch: Fetcher) -> None:
    hub = {"X-Linked-Etag": f'"{SHA256}"', "X-Linked-Size": str(len(CONTENT))}
    server.add("large", redirect="/store", headers=hub)
    server.add("store", CONTENT, etag='"of-the-store"')
    fetch(server.url("large"), sha256=None, bytes=None, hub_digest=True)
    assert fetch.received.vouched_by == "hub"
    server.add("store", bytes(len(CONTENT)))
    fetch.part.unlink()
    with pytest.raises(ChecksumError):
        fetch(server.url("large"), sha256=None, bytes=None, hub_digest=True)
    small = fetch.part.with_name("small")
    small.write_bytes(b'{"a": 1}\n')
    server.add("small", small.read_bytes(), etag=f'"{git_blob_sha1(small)}"')
    assert fetch(server.url("small"), sha256=None, bytes=None, hub_digest=True) == small.read_bytes()
    fetch.part.unlink()
    server.add("small", b"{}", etag=f'"{git_blob_sha1(small)}"')
    with pytest.raises(ChecksumError, match="git blob"):
        fetch(server.url("small"), sha256=None, bytes=None, hub_digest=True)
    server.add("none", CONTENT, etag='"v1"')
    with pytest.raises(DownloadError, match="no digest"):
        fetch(server.url("none"), sha256=None, bytes=None, hub_digest=True)


def test_git_blob_id_is_gits(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello\n")
    assert git_blob_sha1(tmp_path / "f") == "ce013625030ba8dba906f756967f9e9ca394464a"  # `git hash-object`


class FullDisk:
    """A disk that takes `room` bytes of a `.part`, the last piece of them only in part, and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def open(self, path: Path, mode: str, **options: object) -> IO[bytes]:
        file = open(path, mode, **options)  # type: ignore[call-overload]
        return _Bounded(file, self) if "a" in mode or "w" in mode else file


class _Bounded:
    def __init__(self, file: IO[bytes], disk: FullDisk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> _Bounded:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()

    def fileno(self) -> int:
        return self.file.fileno()

    def write(self, block: bytes) -> int:
        if self.disk.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(block[: self.disk.room])
        self.disk.room -= taken
        return taken


def test_a_disk_that_fills_up_leaves_a_part_to_go_on_with(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT)
    with pytest.raises(DiskSpaceError, match="byte 150001"):
        fetch(server.url("f"), disk=Disk(open=FullDisk(150_001).open))
    assert fetch.part.read_bytes() == CONTENT[:150_001]
    assert fetch(server.url("f")) == CONTENT
    assert server.asked("f")[-1].range == "bytes=150001-"


def test_a_disk_without_room_is_noticed_before_the_body(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT)
    with pytest.raises(DiskSpaceError, match="needs 400000 more bytes .* has 123 free"):
        fetch(server.url("f"), disk=Disk(free=lambda folder: 123))
    assert not fetch.part.exists()


def test_cancelling_ends_a_stalled_read_and_keeps_the_part(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, stall_after=[100_000])
    timer = threading.Timer(0.3, fetch.cancel.set)
    timer.start()
    with pytest.raises(Cancelled):
        fetch(server.url("f"), network=replace(IMPATIENT, stall_seconds=60))
    assert fetch.part.stat().st_size == 100_000
    assert Fetcher(fetch.part)(server.url("f")) == CONTENT


def test_cancelling_ends_the_wait_between_attempts(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT, statuses=[(503, {"Retry-After": "3600"})])
    threading.Timer(0.2, fetch.cancel.set).start()
    with pytest.raises(Cancelled):
        fetch(server.url("f"), network=replace(IMPATIENT, retry_after_cap=3600))
