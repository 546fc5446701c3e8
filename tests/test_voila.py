"""Voila serves every notebook as a page: it answers, no cell fails, widgets are there. One server, no browser."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from notebook_place import (
    MAX_AUDIO_CHARACTERS,
    NOTEBOOK_SECONDS,
    NOTEBOOKS,
    ROOT,
    audio_characters,
    cells_of,
    free_port,
    house_of_its_own,
    nbformat,
    quick_first,
    surroundings,
)

pytest.importorskip("voila", reason="pip install 'rvc-spark[lab]'")

START_SECONDS = 120
OUTPUT = re.compile(r'<script type="application/vnd\.voila\.cell-output\+json">(.*?)</script>', re.DOTALL)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WITH_WIDGETS = ("start.ipynb", "studio.ipynb", "triton_spark_rvc.ipynb")
PROOF = {"Cookie": f"_xsrf={'0' * 32}", "X-XSRFToken": "0" * 32}  # a form of ours: cookie and header agree
BAD = "bad.ipynb"  # made for the test: its second cell fails


@dataclass(frozen=True)
class Page:
    """What came for a notebook: the status, the page, and its outputs as they stand in it."""

    status: int
    text: str

    @property
    def outputs(self) -> list[dict]:
        return [json.loads(found) for found in OUTPUT.findall(self.text)]

    def failures(self) -> list[str]:
        """Errors of cells and tracebacks of threads, as far as the page tells."""
        found = [output["ename"] for output in self.outputs if output["output_type"] == "error"]
        return found + re.findall(r"There was an error when executing|Traceback \(most recent call last\)", self.text)


class Voila:
    """A server over the checkout."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.address = f"http://127.0.0.1:{free_port()}"
        self._log = (home / "voila.log").open("w")
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "voila", "--no-browser", f"--port={self.address.rsplit(':', 1)[1]}",
                "--Voila.ip=127.0.0.1", "--show_tracebacks=True", "--enable_nbextensions=False", str(folder),
            ],
            stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, **surroundings(home)}, cwd=home,
        )  # fmt: skip
        self._wait(home / "voila.log")

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(self.address, timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        self.close()
        pytest.fail(f"voila did not start: {log.read_text()[-2000:]}")

    def page(self, notebook: str) -> Page:
        """Execute and get it; its kernel is ended, as the page does when it is left."""
        try:
            with urllib.request.urlopen(f"{self.address}/voila/render/{notebook}", timeout=NOTEBOOK_SECONDS) as answer:
                page = Page(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Page(error.code, error.read().decode(errors="replace"))
        kernel = re.search(r'"kernelId": *"([0-9a-f-]+)"', page.text)
        if kernel:
            address = f"{self.address}/voila/api/shutdown/{kernel[1]}"
            urllib.request.urlopen(urllib.request.Request(address, b"", PROOF, method="POST"), timeout=60).close()
        return page

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(30)
        self._log.close()


@pytest.fixture(scope="module")
def voila(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Voila]:
    """Serves a folder that holds links to the checkout's notebooks, and a bad one."""
    place = tmp_path_factory.mktemp("voila")
    shown = place / "shown"
    for path in NOTEBOOKS:
        (shown / path.parent.name).mkdir(parents=True, exist_ok=True)
        (shown / path.parent.name / path.name).write_bytes(path.read_bytes())
    cells = [nbformat.v4.new_code_cell("1 + 1"), nbformat.v4.new_code_cell("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), shown / BAD)
    server = Voila(shown, house_of_its_own(place / "home"))
    try:
        yield server
    finally:
        server.close()


def test_a_cell_that_fails_is_seen(voila: Voila) -> None:
    page = voila.page(BAD)
    assert page.status == 200 and page.failures()
    assert voila.page("missing.ipynb").status in (404, 500)


@pytest.mark.parametrize("path", quick_first(NOTEBOOKS, "studio.ipynb"), ids=lambda path: path.name)
def test_voila_shows_it(voila: Voila, path: Path) -> None:
    page = voila.page(path.relative_to(ROOT).as_posix())
    assert page.status == 200
    assert page.failures() == []
    told = sum(bool(cell.source.rstrip().splitlines()[-1].isidentifier()) for cell in cells_of(path, "code"))
    assert len(page.outputs) >= told > 0, "a cell whose last line is a value shows it"
    assert max(map(audio_characters, page.outputs)) <= MAX_AUDIO_CHARACTERS
    views = [output["data"][WIDGET_VIEW] for output in page.outputs if WIDGET_VIEW in output.get("data", {})]
    assert all(view["model_id"] for view in views) and (views or path.name not in WITH_WIDGETS)
