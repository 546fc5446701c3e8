"""Half an hour of speech through workers and player: a kernel, a JupyterLab and a real browser, in real time.

    python tests/soak_player.py --minutes 30

Texts are spoken, converted and played one after the other; one in five is stopped half way. A line per text: sound
played, underruns, what was lost, the kernel's memory, threads and file handles, the page's memory. Ends with an error
if anything is lost, if memory grows by 5 % after the first tenth of the time, or if a thread or a handle is left.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
import time
from pathlib import Path

from browser_place import Notebook, browser, jupyter, missing, until
from test_browser import PLAYER, write_notebook

GROWTH = 0.05
STOPPED_EVERY = 5
SETUP = """
import gc, os, threading
from IPython.display import display
from rvc_spark import load_model, stream_speak
from rvc_spark.widgets import LivePlayer, play
load_model("demo")
SENTENCES = [
    "The harbour was empty that morning, and a single boat lay at the pier.", "Nobody was on board.",
    "Far out, a ship moved slowly along the horizon, as if it had all the time in the world.",
    "The keeper of the lighthouse wrote the hour into his book, and made coffee.",
    "It was cold, and it would rain soon.",
]
def text(number): return " ".join(SENTENCES[number % 5:] + SENTENCES[:number % 5]) * 2
def figures():
    gc.collect()
    pages = int(open("/proc/self/statm").read().split()[1])
    names = [t.name for t in threading.enumerate() if t.name.startswith("rvc-spark") and "worker" not in t.name]
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20, threading.active_count(), len(os.listdir("/proc/self/fd")), names
player = LivePlayer(); display(player)
playing = None
"""
STATS = f"async () => {{ const {{captured, ...rest}} = await {PLAYER}.stats(); return rest; }}"
HEAP = "() => Math.round((performance.memory?.usedJSHeapSize ?? 0) / 1048576)"


def value(notebook: Notebook, expression: str) -> tuple:
    return ast.literal_eval(notebook.ask(f"print(repr({expression}))"))


def one_text(notebook: Notebook, number: int) -> dict:
    """Play a text, to its end or half of it; returns the page's figures."""
    notebook.ask(f"playing = play(stream_speak(text({number}), engine='espeak'), 'text {number}', player=player)")
    until(notebook.page, f"() => {PLAYER}?.state === 'playing'", 60)
    if number % STOPPED_EVERY == STOPPED_EVERY - 1:
        notebook.page.wait_for_timeout(6_000)
        notebook.ask("playing.stop()")
        until(notebook.page, f"() => {PLAYER}.state !== 'playing'", 30)
    else:
        until(notebook.page, f"() => {PLAYER}.state === 'finished'", 240)
    return notebook.page.evaluate(STATS)


def main() -> int:
    """Run, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    if problem := missing("jupyterlab"):
        raise SystemExit(problem)
    folder = Path(tempfile.mkdtemp(prefix="soak_player_"))
    write_notebook(folder / "soak.ipynb", cells=2)
    rows, lost, sound, underruns, began = [], 0, 0.0, 0, time.monotonic()
    with jupyter("lab", folder, cwd=folder) as address, browser() as chrome:
        page = chrome.new_page(viewport={"width": 1000, "height": 700})
        page.goto(f"{address}/lab/tree/soak.ipynb?reset")
        notebook = Notebook(page).wait()
        notebook.cell(0, SETUP)
        notebook.run(0)
        until(page, "() => globalThis.rvcSparkPlayers?.size", 60)
        while (passed := time.monotonic() - began) < 60 * minutes:
            page_says = one_text(notebook, len(rows))
            row = value(notebook, "figures()")
            rows.append((passed, *row))
            lost += page_says["lost"] + page_says["gaps"]
            underruns += page_says["underruns"]
            sound += value(notebook, "(playing.take.seconds,)")[0]
            heard = f"{sound:7.1f} s of sound, {underruns} underruns, {lost} lost"
            held = f"kernel {row[0]} MiB, {row[1]} threads, {row[2]} handles; page {page.evaluate(HEAP)} MiB"
            print(f"{passed / 60:6.1f} min, text {len(rows):3}: {heard}; {held}", flush=True)
    warm = [row for row in rows if row[0] > 6 * minutes] or rows
    first, last = warm[0], warm[-1]
    grown = last[1] / first[1] - 1
    print(f"kernel memory {first[1]} -> {last[1]} MiB ({100 * grown:+.1f} %), threads {first[2]} -> {last[2]}, "
          f"handles {first[3]} -> {last[3]}, {underruns} underruns, {lost} lost in {sound:.0f} s of sound")
    return int(bool(grown > GROWTH or lost or last[2] > first[2] or last[3] > first[3]))


if __name__ == "__main__":
    sys.exit(main())
