"""The whole way from a kernel to the loudspeaker, in a real JupyterLab in headless Chromium.

Judged is what must hold on any machine: that nothing is lost or changed, that every end is an end, and that the next
run works. How long things take is not judged; the bounds only mean "does not hang". One notebook and kernel serve all.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_place import Console, Notebook, browser, jupyter, missing, picture, until
from browser_sounds import RATE, samples

pytestmark = pytest.mark.skipif(bool(missing("jupyterlab")), reason=missing("jupyterlab"))

SETUP = """
import threading, time
from IPython.display import display
from browser_sounds import chunks, digest, samples
from rvc_spark.widgets import LivePlayer, play

def ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rvc-spark")]
"""
# A player of its own stays in the cell at the end, so that its page can still be asked.
OWN_PLAYER = "player = LivePlayer(capture=True, format={format!r}); display(player)\n"
PLAYER = "[...rvcSparkPlayers.values()].at(-1)"
STATS = f"""async () => {{
  const {{ captured, ...rest }} = await {PLAYER}.stats();
  const hash = captured && new Uint8Array(await crypto.subtle.digest("SHA-256", captured));
  return {{ ...rest, digest: hash && [...hash].map((byte) => byte.toString(16).padStart(2, "0")).join("") }};
}}"""


@dataclass
class Lab:
    """The open notebook. Cells are used one after the other."""

    notebook: Notebook
    console: Console
    used: int = 0

    @property
    def page(self) -> Any:
        return self.notebook.page

    def ask(self, expression: str) -> Any:
        """The value of a Python expression in the kernel."""
        return ast.literal_eval(self.notebook.ask(f"print(repr({expression}))"))

    def run(self, code: str) -> int:
        """Run code in the next cell, as a person would; returns the cell's number."""
        number, self.used = self.used, self.used + 1
        self.notebook.cell(number, code)
        self.notebook.run(number)
        return number

    def play(self, what: str, options: str = "", format: str = "f32") -> None:
        """Play a stream of `browser_sounds` with a player that keeps what it played, and wait for the first sound."""
        begin = f"playing = play({what}, 'A gliding tone', player=player, {options})"
        self.run(OWN_PLAYER.format(format=format) + begin)
        self.sounds()

    def sounds(self) -> None:
        """Until something is heard."""
        until(self.page, f"() => globalThis.rvcSparkPlayers?.size && {PLAYER}.state === 'playing'", 90)

    def heard(self) -> dict[str, Any]:
        """Figures of the page once everything was heard."""
        until(self.page, f"() => {PLAYER}.state === 'finished'", 150)
        return self.page.evaluate(STATS)

    def assert_over(self, state: str) -> None:
        """No thread works, no page sounds, and the kernel says why."""
        end = "() => [...(globalThis.rvcSparkPlayers ?? new Map()).values()].every(({ state }) => state !== 'playing')"
        until(self.page, end)
        for _ in range(100):
            if not (left := self.ask("ours()")):
                break
            self.page.wait_for_timeout(50)
        assert left == []
        assert self.ask("playing.state") == state

    def assert_next_run_works(self) -> None:
        """A short stream, from its first sample to its last."""
        self.play("chunks(1.0)")
        played = self.heard()
        assert played["digest"] == self.ask("digest(samples(1.0))")
        self.notebook.ask("player.close()")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    notebooks = folder / "notebooks"
    notebooks.mkdir()
    write_notebook(notebooks / "player.ipynb", cells=40)
    with jupyter("lab", folder, cwd=notebooks) as address, browser() as chrome:
        page = chrome.new_page(viewport={"width": 1100, "height": 760})
        console = Console().follow(page)
        page.goto(f"{address}/lab/tree/player.ipynb?reset")
        notebook = Notebook(page).wait()
        notebook.ask(SETUP)
        place = Lab(notebook, console)
        place.play("chunks(0.5)")  # the page loads the module with its first player, however busy the kernel is later
        place.heard()
        notebook.ask("player.close()")
        yield place
        assert console.errors == []


def write_notebook(path: Path, cells: int) -> None:
    empty = {"cell_type": "code", "metadata": {}, "source": "", "outputs": [], "execution_count": None}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {
        "cells": [{**empty, "id": f"cell-{number}"} for number in range(cells)],
        "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip
    path.write_text(json.dumps(content), "utf-8")


def heap(page: Any) -> float:
    """Megabytes of the page's scripts after everything that can be collected was."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")
    session.detach()
    return (used["usedSize"] + used.get("backingStorageSize", 0)) / 1e6


def test_sixty_seconds_arrive_bit_by_bit(lab: Lab) -> None:
    lab.play("chunks(60, 44100, 2)", "lead=0.3")
    until(lab.page, f"() => {PLAYER}.now.played > 12 * 44100", 60)
    picture(lab.page, "lab")
    before = heap(lab.page)
    until(lab.page, f"() => {PLAYER}.now.played > 50 * 44100", 120)
    grown = heap(lab.page) - before
    played = lab.heard()
    assert (played["mode"], played["gaps"], played["lost"], played["overrun"]) == ("worklet", 0, 0, 0)
    assert played["underruns"] <= 2
    assert played["played"] == 60 * 44_100
    assert played["recv"] == played["ring"]["recv"] == lab.ask("playing.stats().packets")
    assert played["digest"] == lab.ask("digest(samples(60, 44100, 2))")
    assert grown < 4.0, "38 s of sound are 13 MB"
    lab.assert_over("ended")
    assert lab.ask("playing.stats().player.lost") == 0
    lab.notebook.ask("player.close()")


def test_pause_and_resume_lose_nothing(lab: Lab) -> None:
    lab.play("chunks(8)")
    for _ in range(2):
        lab.page.get_by_role("button", name="Pause").last.click()
        until(lab.page, f"() => {PLAYER}.state === 'paused'")
        assert until(lab.page, f"() => {PLAYER}.now.played")
        lab.page.wait_for_timeout(200)
        lab.page.get_by_role("button", name="Play").last.click()
        lab.sounds()
        lab.page.wait_for_timeout(200)
    played = lab.heard()
    assert (played["lost"], played["gaps"], played["digest"]) == (0, 0, lab.ask("digest(samples(8))"))
    lab.notebook.ask("player.close()")


def test_half_the_bytes_where_the_page_is_far_away(lab: Lab) -> None:
    lab.play("chunks(1.5)", format="i16")
    assert lab.heard()["lost"] == 0
    kept = np.array(lab.page.evaluate(f"async () => [...(await {PLAYER}.stats()).captured]")) * 32_768
    assert np.array_equal(kept, np.rint(kept)), "whole steps of 16 bits"
    assert np.abs(kept / 32_768 - samples(1.5)[0]).max() <= 2 / 32_768, "rounding and dither"
    lab.notebook.ask("player.close()")


def test_a_busy_kernel_does_not_disturb_what_plays(lab: Lab) -> None:
    busy = "end = time.monotonic() + 6\nwhile time.monotonic() < end: sum(range(1000))"
    lab.run(OWN_PLAYER.format(format="f32") + f"playing = play(chunks(3), 'busy', player=player, lead=0.5)\n{busy}")
    lab.sounds()
    assert lab.notebook.busy()
    played = lab.heard()
    assert (played["lost"], played["gaps"], played["digest"]) == (0, 0, lab.ask("digest(samples(3))"))
    lab.assert_over("ended")
    lab.notebook.ask("player.close()")


def test_a_busy_page_loses_nothing(lab: Lab) -> None:
    lab.play("chunks(6)")
    stall = "(ms) => { const end = performance.now() + ms; while (performance.now() < end); }"
    for milliseconds in (300, 300, 1500, 300):
        lab.page.evaluate(stall, milliseconds)
        lab.page.wait_for_timeout(150)
    played = lab.heard()
    assert (played["lost"], played["gaps"], played["digest"]) == (0, 0, lab.ask("digest(samples(6))"))
    lab.assert_over("ended")
    lab.notebook.ask("player.close()")


def test_stop_button(lab: Lab) -> None:
    cell = lab.run("playing = play(chunks(5, pause=0.02, endless=True), 'without end')")
    lab.sounds()
    lab.page.get_by_role("button", name="Stop").last.click()
    lab.assert_over("stopped")
    until(lab.page, "() => rvcSparkPlayers.size === 0")
    sound = lab.page.locator(".jp-Notebook .jp-Cell").nth(cell).locator("audio")
    sound.wait_for(state="attached")
    assert len(sound.get_attribute("src")) < 200_000, "what stays with the notebook is small"
    lab.assert_next_run_works()


def test_the_notebook_interrupts_a_cell_that_waits(lab: Lab) -> None:
    cell = lab.run("playing = play(chunks(5, pause=0.02, endless=True), 'waits')\nplaying.wait()")
    lab.sounds()
    lab.notebook.interrupt()
    lab.page.locator(".jp-Notebook .jp-Cell").nth(cell).get_by_text("KeyboardInterrupt").first.wait_for()
    lab.assert_over("stopped")
    lab.assert_next_run_works()


def test_cancelling_and_running_the_cell_again(lab: Lab) -> None:
    code = "playing = play(chunks(5, pause=0.02, endless=True), 'again')"
    cell = lab.run(code)
    lab.sounds()
    first = lab.page.evaluate("() => [...rvcSparkPlayers.keys()].at(-1)")
    lab.notebook.run(cell)
    until(lab.page, f"() => !rvcSparkPlayers.has({first!r}) && rvcSparkPlayers.size && {PLAYER}.state === 'playing'")
    assert lab.ask("len(ours())") == 2, "the first run is gone"
    assert lab.ask("playing.stop()") is True
    lab.assert_over("stopped")
    lab.assert_next_run_works()


def test_a_reloaded_page_and_one_without_worklets(lab: Lab) -> None:
    lab.run("playing = play(chunks(5, pause=0.02, endless=True), 'until the page goes')")
    lab.sounds()
    lab.page.add_init_script("delete globalThis.AudioWorkletNode; delete BaseAudioContext.prototype.audioWorklet;")
    lab.page.reload()
    lab.notebook.wait()
    lab.assert_over("page closed")
    lab.play("chunks(2)")
    played = lab.heard()
    assert (played["mode"], played["played"], played["lost"]) == ("source", 2 * RATE, 0)
    lab.notebook.ask("player.close()")


def test_a_closed_tab(lab: Lab) -> None:
    lab.run("playing = play(chunks(5, pause=0.02, endless=True), 'until the tab goes')")
    lab.sounds()
    lab.page.wait_for_timeout(1_500)  # it has reported; a tab that is cut off before is like none at all
    address, chrome = lab.page.url, lab.page.context.browser
    lab.page.close()
    lab.notebook.page = chrome.new_page(viewport={"width": 1100, "height": 760})
    lab.console.follow(lab.page)
    lab.page.goto(address)
    lab.notebook.wait()
    lab.assert_over("page closed")
    lab.assert_next_run_works()
