"""The live player in the other hosts that are supported: Notebook 7 and Voila, each with a short stream."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_place import Console, Notebook, browser, jupyter, missing, picture, until
from browser_sounds import RATE, samples

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

SECONDS = 2.0
CELL = f"""
from IPython.display import display
from browser_sounds import chunks
from rvc_spark.widgets import LivePlayer, play

player = LivePlayer(capture=True)
display(player)
playing = play(chunks({SECONDS}), "Two seconds of a gliding tone", player=player)
"""
# Voila 0.5 fetches a font and loads Notebook 7's extension, which does not fit it. Neither is ours.
OF_VOILA = ("ERR_NAME_NOT_RESOLVED", "RUNTIME-012")
PLAYER = "[...rvcSparkPlayers.values()].at(-1)"


def write_notebook(path: Path, source: str) -> None:
    cell = {"id": "only", "cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.write_text(
        json.dumps({"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}), "utf-8"
    )


def assert_heard(page: Any, name: str) -> None:
    """All of the stream was played, sample by sample."""
    until(page, f"() => globalThis.rvcSparkPlayers?.size && {PLAYER}.state === 'playing'", 120)
    until(page, f"() => {PLAYER}.now.played > {RATE}", 60)
    picture(page, name)
    until(page, f"() => {PLAYER}.state === 'finished'", 60)
    played = page.evaluate(f"() => {PLAYER}.stats().then((all) => ({{ ...all, captured: [...all.captured] }}))")
    assert (played["mode"], played["gaps"], played["lost"], played["overrun"]) == ("worklet", 0, 0, 0)
    expected = samples(SECONDS)[0]
    assert len(played["captured"]) == len(expected)
    heard = np.array(played["captured"], np.float32)
    assert hashlib.sha256(heard.tobytes()).hexdigest() == hashlib.sha256(expected.tobytes()).hexdigest()


@pytest.mark.skipif(bool(missing("notebook")), reason=missing("notebook"))
def test_notebook_7(tmp_path: Path) -> None:
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    write_notebook(notebooks / "player.ipynb", "")
    with jupyter("notebook", tmp_path, cwd=notebooks) as address, browser() as chrome:
        page = chrome.new_page(viewport={"width": 1100, "height": 700})
        console = Console(["(reading 'schema')"]).follow(page)  # a plugin of Notebook 7.6 itself
        page.goto(f"{address}/notebooks/player.ipynb")
        notebook = Notebook(page).wait()
        notebook.cell(0, CELL)
        notebook.run(0)
        assert_heard(page, "notebook7")
        assert console.errors == []


@pytest.mark.skipif(bool(missing("voila")), reason=missing("voila"))
def test_voila(tmp_path: Path) -> None:
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    write_notebook(notebooks / "player.ipynb", CELL)
    with jupyter("voila", tmp_path, "player.ipynb", cwd=notebooks) as address, browser() as chrome:
        page = chrome.new_page(viewport={"width": 1100, "height": 500})
        console = Console(OF_VOILA).follow(page)
        page.goto(address, timeout=90_000)
        assert_heard(page, "voila")
        assert console.errors == []
