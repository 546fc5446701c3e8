"""Where a connection may lead: redirects, tokens, certificates, proxies, and nobody at the other end."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from asset_place import CONTENT, IMPATIENT, Fetcher
from asset_server import AssetServer, asset_server

from rvc_spark.errors import AssetError, DownloadError


@pytest.fixture
def server():
    with asset_server() as running:
        yield running


@pytest.fixture
def fetch(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "file.bin.part")


def test_redirects_lead_to_the_file(server: AssetServer, fetch: Fetcher) -> None:
    server.add("a", redirect="/b?signature=x%20y")
    server.add("b", redirect=server.url("c", host="localhost"))
    server.add("c", CONTENT)
    assert fetch(server.url("a")) == CONTENT


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://example.com/x", "data:,x", "//", "http://a:b@127.0.0.1/"],
)
def test_redirects_to_anything_else_are_refused(server: AssetServer, fetch: Fetcher, target: str) -> None:
    server.add("a", redirect=target)
    with pytest.raises(DownloadError, match="redirect"):
        fetch(server.url("a"))


def test_redirect_circles_and_long_chains_end(server: AssetServer, fetch: Fetcher) -> None:
    server.add("a", redirect="/b")
    server.add("b", redirect="/a")
    with pytest.raises(DownloadError, match="circle"):
        fetch(server.url("a"))
    for number in range(12):
        server.add(f"r{number}", redirect=f"/r{number + 1}")
    with pytest.raises(DownloadError, match="circle"):
        fetch(server.url("r0"))
    assert len(server.requests) < 15


def test_the_token_goes_to_the_hub_alone(server: AssetServer, fetch: Fetcher) -> None:
    network = replace(IMPATIENT, token="hf_secret")
    server.add("a", redirect=server.url("b", host="localhost"))  # another host, as the hub's storage is
    server.add("b", redirect=server.url("c"))  # and back: once gone, the token stays gone
    server.add("c", CONTENT)
    assert fetch(server.url("a"), network=network) == CONTENT
    seen = [request.headers.get("authorization") for request in server.requests]
    assert seen == ["Bearer hf_secret", None, None]
    assert "hf_secret" not in repr(network)


def test_nobody_there_is_a_named_error(fetch: Fetcher) -> None:
    with pytest.raises(DownloadError, match="broke.*2 attempts"):
        fetch("http://127.0.0.1:1/f")
    with pytest.raises(DownloadError, match="looked up"):
        fetch("https://no-such-host.invalid/f")


def test_a_proxy_is_used_when_it_is_given(server: AssetServer, fetch: Fetcher) -> None:
    server.add("f", CONTENT)
    assert fetch("http://localhost:9/f", network=replace(IMPATIENT, proxy=server.url())) == CONTENT


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls_is_checked_and_may_be_slower_than_the_polling(server: AssetServer, fetch: Fetcher, tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*make.split(), *names], check=True, capture_output=True)
    server.add("f", CONTENT, block=200_000, pause=0.4, break_after=[300_000])
    server.speak_tls(certificate, key)
    with pytest.raises(DownloadError, match="not who it says"):
        fetch(server.url("f", host="localhost"))
    assert not server.requests
    trusting = replace(IMPATIENT, ca_file=certificate, stall_seconds=3)
    assert fetch(server.url("f", host="localhost"), network=trusting) == CONTENT
    assert server.asked("f")[-1].range == "bytes=300000-"
    server.add("down", redirect=server.url("f").replace("https", "http"))
    with pytest.raises(DownloadError, match="https to plain http"):
        fetch.part.unlink()
        fetch(server.url("down", host="localhost"), network=trusting)
    with pytest.raises(AssetError, match="no certificates"):
        fetch(server.url("f"), network=replace(IMPATIENT, ca_file=tmp_path / "missing"))


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000])
def test_servers_that_do_not_speak_http(fetch: Fetcher, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            for _ in range(IMPATIENT.attempts):
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(DownloadError, match="broke"):
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/f")
        server.join()
