"""The player on a plain page in headless Chromium: every way its packets, its sound and its end can take.

No Jupyter is needed here; test_browser.py has the whole way from a kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser_place import MAY_SOUND, NEEDS_CLICK, Console, another, browser, missing, picture, plain_server, until
from browser_sounds import samples

from rvc_spark.streaming.page_source import player_module, player_style

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

RATE = 24_000
BANDS, HOP = 64, 240
# `feed` plays the sender: packets of 50 ms, all at once; `told` is what it hears.
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>player</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/player.css">
<style>body { margin: 12px; STYLE } #place { width: 640px; }</style></head><body><div id="place"></div>
<script type="module">
import { createPlayer } from "/player.js";
const whole = new Float32Array(await (await fetch("/sound")).arrayBuffer());
const told = [];
const player = createPlayer({ key: "one", send: (message) => told.push(message) });
const wrap = {
  DataView: (x) => new DataView(x.buffer, x.byteOffset, x.byteLength),
  ArrayBuffer: (x) => x.slice().buffer,
  Uint8Array: (x) => {
    const odd = new Uint8Array(x.byteLength + 1); // not aligned, as a part of a larger message is not
    odd.set(new Uint8Array(x.buffer, x.byteOffset, x.byteLength), 1);
    return odd.subarray(1);
  },
};
const RATE = 24000, HOP = 240, BANDS = 64;
const open = (options = {}, to = player) =>
  to.receive({ t: "open", run: 1, rate: RATE, channels: 1, lead: 0.3, prebuffer: 0.2, title: "a test", capture: true,
               bands: BANDS, hop: HOP, top_hz: 12000, ...options });
function feed(from, to, options = {}) {
  const { run = 1, fmt = "f32", kind = "DataView", packet = 1200, skip = [], player: target = player } = options;
  for (let at = from; at < to; at += packet) {
    if (skip.includes(at / packet)) continue;
    const part = whole.slice(at, Math.min(to, at + packet));
    const pcm = fmt === "f32" ? part : Int16Array.from(part, (x) => Math.round(x * 32767));
    const cols = Math.floor((at + part.length) / HOP) - Math.floor(at / HOP);
    const mel = new Uint8Array(cols * BANDS).map((_, i) => (i % BANDS) * 3), f0 = new Float32Array(cols).fill(200);
    target.receive({ t: "pcm", run, seq: Math.round(at / packet), start: at, n: part.length, fmt, at: 0, cols },
                   [pcm, mel, f0].map(wrap[kind]));
  }
}
const end = (frames, run = 1) => player.receive({ t: "end", run, count: Math.ceil(frames / 1200), frames });
const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
const stats = async () => {
  const { captured, ...rest } = await player.stats();
  return { ...rest, digest: captured && hex(await crypto.subtle.digest("SHA-256", captured)) };
};
const show = (to = player) => to.show(document.getElementById("place"));
Object.assign(globalThis, { createPlayer, player, told, open, feed, end, stats, show });
if (location.search === "?whole") { show(); open(); feed(0, whole.length); end(whole.length); }
globalThis.loaded = true;
</script></body></html>"""


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """30 s, float32 [frames]."""
    return samples(30.0)[0]


@pytest.fixture(scope="module")
def address(sound: np.ndarray) -> Iterator[str]:
    dark = PAGE.replace("STYLE", "background: #111; color: #eee;")
    files = {
        "/": ("text/html", PAGE.replace("STYLE", "").encode()),
        "/dark": ("text/html", dark.encode()),
        "/player.js": ("text/javascript", player_module().encode()),
        "/player.css": ("text/css", player_style().encode()),
        "/sound": ("application/octet-stream", sound.astype("<f4").tobytes()),
    }
    with plain_server(files) as url:
        yield url


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with browser(MAY_SOUND) as opened:
        yield opened


@pytest.fixture
def load(chrome: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page: load(path, init=JavaScript to run before it). No page may write errors."""
    pages, consoles = [], []

    def _load(path: str = "/", init: str = "", **options: Any) -> Any:
        page = chrome.new_page(**options)
        pages.append(page)
        consoles.append(Console().follow(page))
        if init:
            page.add_init_script(init)
        page.goto(address + path)
        page.wait_for_function("() => globalThis.loaded", timeout=30_000)
        return page

    yield _load
    for page in pages:
        page.close()
    assert [error for console in consoles for error in console.errors] == []


def wait_state(page: Any, state: str) -> dict[str, Any]:
    """Until the player is in a state; returns its figures."""
    page.wait_for_function(f"() => globalThis.player?.state === {state!r}", timeout=30_000)
    return page.evaluate("() => stats()")


def wait_told(page: Any, kind: str) -> dict[str, Any]:
    """Until the page told its sender something; returns the message."""
    page.wait_for_function(f"() => told.some((message) => message.t === {kind!r})", timeout=30_000)
    return page.evaluate(f"() => told.findLast((message) => message.t === {kind!r})")


def digest(sound: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(sound, "<f4").tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("kind", "fmt"), [("DataView", "f32"), ("ArrayBuffer", "i16"), ("Uint8Array", "f32"), ("Uint8Array", "i16")]
)
def test_samples_are_played_as_they_were_sent(load: Callable, sound: np.ndarray, kind: str, fmt: str) -> None:
    page = load()
    page.evaluate(f"() => {{ show(); open(); feed(0, 12000, {{ kind: {kind!r}, fmt: {fmt!r} }}); end(12000); }}")
    played = wait_state(page, "finished")
    expected = sound[:12_000]
    if fmt == "i16":  # JavaScript rounds halves up
        expected = np.floor(expected.astype(np.float64) * 32_767 + 0.5).astype(np.float32) / np.float32(32_768)
    assert (played["mode"], played["played"], played["digest"]) == ("worklet", 12_000, digest(expected))
    assert (played["recv"], played["gaps"], played["lost"], played["underruns"], played["overrun"]) == (10, 0, 0, 0, 0)
    assert wait_told(page, "ended")["played"] == 12_000
    ready = wait_told(page, "ready")
    assert (ready["mode"], ready["rate"], ready["secure"]) == ("worklet", RATE, True)


def test_packets_that_come_early_late_twice_or_never(load: Callable, sound: np.ndarray) -> None:
    page = load()
    page.evaluate("() => { show(); feed(0, 6000); }")  # before the message that opens the run
    assert wait_told(page, "ready")["state"] == "unopened"
    page.evaluate("() => { open(); feed(0, 4800); feed(6000, 12000, { skip: [6] }); end(12000); }")
    played = wait_state(page, "finished")
    assert (played["recv"], played["repeated"], played["gaps"], played["lost"]) == (9, 4, 1, 1)
    assert played["played"] == 12_000, "silence stands for the lost packet"


def test_a_new_run_replaces_the_one_before_and_old_messages_are_ignored(load: Callable, sound: np.ndarray) -> None:
    page = load()
    page.evaluate("() => { show(); open(); feed(0, 48000); }")
    wait_state(page, "playing")
    page.evaluate(
        "() => { open({ run: 2 }); feed(48000, 60000, { run: 1 }); player.receive({ t: 'stop', run: 1 });"
        " open({ run: 1 }); feed(0, 6000, { run: 2 }); end(6000, 2); }"
    )
    played = wait_state(page, "finished")
    assert (played["played"], played["digest"], played["recv"]) == (6000, digest(sound[:6000]), 5)
    assert page.evaluate("() => player.run") == 2


def test_pause_and_resume_by_keyboard_lose_nothing(load: Callable, sound: np.ndarray) -> None:
    page = load()
    page.evaluate("() => { show(); open(); feed(0, 24000); }")
    wait_state(page, "playing")
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Space")
    paused = wait_state(page, "paused")
    assert wait_told(page, "pause")["run"] == 1
    page.evaluate("() => { feed(24000, 36000); end(36000); }")
    assert wait_state(page, "paused")["played"] == paused["played"], "stands still"
    page.keyboard.press("Enter")  # the same button
    played = wait_state(page, "finished")
    assert wait_told(page, "resume")["run"] == 1
    assert (played["digest"], played["underruns"], played["lost"]) == (digest(sound[:36_000]), 0, 0)


def test_the_sender_may_pause_resume_and_stop(load: Callable) -> None:
    page = load()
    page.evaluate("() => { show(); open(); feed(0, 48000); }")
    wait_state(page, "playing")
    page.evaluate("() => player.receive({ t: 'pause', run: 1 })")
    wait_state(page, "paused")
    page.evaluate("() => player.receive({ t: 'resume', run: 1 })")
    wait_state(page, "playing")
    page.evaluate("() => player.receive({ t: 'stop', run: 1 })")
    stopped = wait_state(page, "stopped")
    assert stopped["buffered"] == 0 and 0 < stopped["played"] < 48_000
    assert page.evaluate("() => told.filter(({ t }) => ['pause', 'resume', 'stop'].includes(t))") == []


def test_stop_button(load: Callable) -> None:
    page = load()
    page.evaluate("() => { show(); open(); feed(0, 48000); }")
    wait_state(page, "playing")
    page.get_by_role("button", name="Stop").click()
    assert wait_state(page, "stopped")["buffered"] == 0
    assert wait_told(page, "stop")["run"] == 1
    page.evaluate("() => feed(48000, 60000)")
    assert page.evaluate("() => stats()")["buffered"] == 0, "what comes after it is not kept"


def test_sound_waits_for_a_click_where_the_browser_wants_one(chrome: Any, address: str, sound: np.ndarray) -> None:
    with another(chrome, NEEDS_CLICK) as strict:
        page = strict.new_page()
        page.goto(address + "/?whole")  # what a test evaluates counts as a person's gesture, so the page begins itself
        page.wait_for_timeout(2000)
        blocked = wait_state(page, "blocked")
        assert (blocked["played"], blocked["buffered"], blocked["lost"]) == (0, 720_000, 0)
        assert blocked["queued"] == 240_000, "the ring holds 20 s, the rest waits in the page"
        assert page.evaluate("() => told.findLast(({ t }) => t === 'ready').state") == "suspended"
        picture(page, "press_to_listen")
        page.get_by_role("button", name="Press to listen").click()
        wait_state(page, "playing")
        until(page, "() => player.now.played > 4000")
        heard = page.evaluate("async () => [...(await player.stats()).captured.slice(0, 4000)]")
        assert np.array_equal(np.array(heard, np.float32), sound[:4000])
        assert page.get_by_role("button", name="Press to listen").is_hidden()


# No worklet, and a record of every buffer: when it starts, from where, and whether it was taken back before.
RECORD = """
delete globalThis.AudioWorkletNode; delete BaseAudioContext.prototype.audioWorklet;
const { start, stop } = AudioBufferSourceNode.prototype;
globalThis.recorded = [];
AudioBufferSourceNode.prototype.start = function (when, offset) {
  this.record = { when, offset: offset ?? 0, samples: [...this.buffer.getChannelData(0)], stopped: false };
  recorded.push(this.record);
  return start.call(this, when, offset);
};
AudioBufferSourceNode.prototype.stop = function (when) {
  this.record.stopped ||= this.context.currentTime < this.record.when;
  return stop.call(this, when);
};"""
TAIL = 120  # frames of 5 ms


def test_without_a_worklet_timed_buffers_play_the_same(load: Callable, sound: np.ndarray) -> None:
    page = load(init=RECORD)
    page.evaluate("() => { show(); open(); feed(0, 24000); feed(24000, 36000); end(36000); }")
    played = wait_state(page, "finished")
    assert (played["mode"], played["played"], played["underruns"], played["lost"]) == ("source", 36_000, 0, 0)
    assert wait_told(page, "ended")["played"] == 36_000
    buffers = page.evaluate("() => recorded")
    packets = [one for one in buffers if len(one["samples"]) != TAIL]
    starts = np.array([one["when"] for one in packets]) * RATE
    assert np.abs(starts - starts[0] - 1200 * np.arange(30)).max() < 1e-6, "each begins on the sample where one ends"
    assert np.array_equal(np.concatenate([one["samples"] for one in packets]).astype(np.float32), sound[:36_000])
    tails = [one for one in buffers if len(one["samples"]) == TAIL]
    assert [one["stopped"] for one in tails] == [True] * 29 + [False], "a tail sounds where nothing follows"
    rough = np.abs(np.diff(np.concatenate([sound[35_000:36_000], tails[-1]["samples"], np.zeros(9)]), 2))
    assert rough[990:].max() < 2 * rough[:990].max(), "and does not click"


def test_timed_buffers_pause_run_dry_and_stop(load: Callable, sound: np.ndarray) -> None:
    page = load(init=RECORD)
    page.evaluate("() => { show(); open(); feed(0, 48000); }")
    wait_state(page, "playing")
    page.get_by_role("button", name="Pause").click()
    paused = wait_state(page, "paused")
    page.wait_for_timeout(50)
    assert page.evaluate("() => stats()")["played"] == paused["played"]
    page.get_by_role("button", name="Play").click()
    until(page, "() => player.now.underruns === 1")
    assert wait_state(page, "waiting")["played"] == 48_000, "all of it, pause or not"
    page.evaluate("() => feed(48000, 72000)")
    wait_state(page, "playing")
    page.get_by_role("button", name="Stop").click()
    stopped = wait_state(page, "stopped")
    assert 48_000 <= stopped["played"] < 72_000 and stopped["buffered"] == 0


@pytest.mark.parametrize(("policy", "mode"), [("data:", "worklet"), ("", "source")])
def test_pages_with_rules_about_scripts(chrome: Any, address: str, sound: np.ndarray, policy: str, mode: str) -> None:
    page = chrome.new_page()

    def with_policy(route: Any) -> None:
        answer = route.fetch()
        rules = f"script-src 'self' 'unsafe-inline' {policy}"
        route.fulfill(response=answer, headers={**answer.headers, "Content-Security-Policy": rules})

    page.route(address + "/", with_policy)
    page.goto(address + "/")
    page.wait_for_function("() => globalThis.loaded", timeout=30_000)
    page.evaluate("() => { show(); open(); feed(0, 12000); end(12000); }")
    assert wait_state(page, "finished")["played"] == 12_000
    assert wait_told(page, "ready")["mode"] == mode
    page.close()


def test_saving_what_has_come(load: Callable, sound: np.ndarray, tmp_path: Path) -> None:
    page = load()
    page.evaluate("() => { show(); open({ title: 'Guten Tag, 5 / 7?' }); feed(0, 24000); }")
    page.wait_for_function("() => player.run === 1")
    for frames, name in ((24_000, "Guten Tag 5 7 (first 1.0 s).wav"), (36_000, "Guten Tag 5 7.wav")):
        if frames > 24_000:
            page.evaluate("() => { feed(24000, 36000, { fmt: 'i16' }); end(36000); }")
            wait_state(page, "finished")
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Save").click()
        assert waiting.value.suggested_filename == name
        waiting.value.save_as(tmp_path / "take.wav")
        kept, rate = soundfile.read(tmp_path / "take.wav", dtype="float32")
        assert rate == RATE and len(kept) == frames
        assert np.array_equal(kept[:24_000], sound[:24_000])
        assert np.abs(kept - sound[:frames]).max() < 1 / 30_000
    assert wait_told(page, "save")["run"] == 1


def test_one_player_of_a_page_sounds_at_a_time(load: Callable) -> None:
    page = load()
    page.evaluate("() => { show(); open(); feed(0, 48000); }")
    wait_state(page, "playing")
    page.evaluate(
        "() => { globalThis.other = createPlayer({ key: 'two', send: () => {} }); show(other); open({}, other);"
        " feed(0, 48000, { player: other }); }"
    )
    wait_state(page, "paused")
    assert wait_told(page, "pause")["run"] == 1
    page.wait_for_function("() => other.state === 'playing'")
    page.get_by_role("button", name="Play").first.click()
    wait_state(page, "playing")
    assert page.evaluate("() => other.state") == "paused"
    assert sorted(page.evaluate("() => [...rvcSparkPlayers.keys()]")) == ["one", "two"]


def test_without_its_buttons_it_falls_silent_and_says_good_bye(load: Callable) -> None:
    page = load()
    page.evaluate("() => { globalThis.remove = show(); open({ capture: false }); feed(0, 48000); }")
    wait_state(page, "playing")
    page.evaluate("() => { remove(); globalThis.remove = show(); }")  # a cell that is moved
    page.wait_for_timeout(400)
    assert page.evaluate("() => player.state") == "playing"
    page.evaluate("() => remove()")
    assert wait_told(page, "bye")["run"] == 1
    wait_state(page, "stopped")
    page.wait_for_function("() => player.context === undefined", timeout=30_000)
    page.evaluate("() => { show(); open({ run: 2 }); feed(0, 12000, { run: 2 }); end(12000, 2); }")
    assert wait_state(page, "finished")["played"] == 12_000, "the next run works"


@pytest.mark.parametrize("init", ["", "delete globalThis.AudioWorkletNode;"])
def test_the_good_bye_is_the_last_word_of_every_run(load: Callable, init: str) -> None:
    page = load(init=init)
    for run in (1, 2):  # shown again, it says good-bye again
        page.evaluate("(run) => { globalThis.remove = show(); open({ run }); feed(0, 48000, { run }); }", run)
        wait_state(page, "playing")
        page.evaluate("() => { told.length = 0; remove(); }")
        assert wait_told(page, "bye")["run"] == run
        page.wait_for_timeout(150)  # the sound thread has fallen silent, and would have said so
        assert page.evaluate("() => told.at(-1).t") == "bye"


def test_a_page_that_goes_away_says_good_bye(load: Callable, address: str) -> None:
    page = load()
    page.evaluate(
        "() => { show(); open(); feed(0, 48000);"
        " told.push = (message) => sessionStorage.setItem(message.t, message.run); }"
    )
    wait_state(page, "playing")
    page.goto(address)
    assert page.evaluate("() => sessionStorage.getItem('bye')") == "1"


def test_the_picture_follows_what_is_heard_and_rests_with_it(load: Callable) -> None:
    page = load(
        init="let asked = 0; const ask = requestAnimationFrame; globalThis.frames_ = () => asked;"
        " globalThis.requestAnimationFrame = (work) => { asked += 1; return ask(work); };"
    )
    page.evaluate("() => { show(); open(); feed(0, 48000); }")
    ink = """() => {
      const canvas = document.querySelector("canvas");
      return canvas.getContext("2d").getImageData(canvas.width - 9, 50, 1, 1).data[0];
    }"""
    wait_state(page, "playing")
    page.wait_for_function(f"() => ({ink})() < 200", timeout=30_000)  # a column has come to the right edge
    assert page.evaluate("() => frames_()") > 3
    page.evaluate("() => player.receive({ t: 'pause', run: 1 })")
    page.wait_for_timeout(1500)  # the needle falls
    before = page.evaluate("() => frames_()")
    page.wait_for_timeout(500)
    assert page.evaluate("() => frames_()") - before <= 3, "a paused player draws nothing"


@pytest.mark.parametrize(("path", "width"), [("/", 320), ("/dark", 380), ("/", 1000)])
def test_it_fits_its_cell(load: Callable, path: str, width: int) -> None:
    page = load(path, viewport={"width": width + 24, "height": 340})
    page.evaluate(f"() => {{ document.getElementById('place').style.width = '{width}px'; }}")
    page.evaluate(
        "() => { show(); open({ title: 'A title that is rather long for a cell, as titles of sentences often are' });"
        " player.receive({ t: 'words', run: 1, status: 'making', progress: { made: 61, total: 3725 },"
        " gaps: ['sentence 3 is missing: the worker stopped'] }); feed(0, 48000); }"
    )
    wait_state(page, "playing")
    page.wait_for_timeout(300)
    picture(page, f"player_{width}{'_dark' if 'dark' in path else ''}")
    spill = """() => {
      const root = document.querySelector(".rvc-spark-player"), edge = root.getBoundingClientRect().right;
      return [root.getBoundingClientRect().width,
              [...root.querySelectorAll("*")].filter((one) => one.getBoundingClientRect().right > edge).map(String)];
    }"""
    assert page.evaluate(spill) == [width, []]
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    names = "() => [...document.querySelectorAll('button')].map((one) => one.ariaLabel || one.textContent.trim())"
    assert page.evaluate(names) == ["Pause", "Stop", "Save", "Press to listen"]
    assert page.evaluate("() => document.querySelector('.rvc-spark-player').dataset.theme") == (
        "dark" if "dark" in path else "light"
    )
