"""The live player and what it leaves behind: every byte it sends, and runs in real kernels without a page."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from rvc_spark.audio import Audio, read_audio
from rvc_spark.errors import OutputError, SpeechError, StreamError
from rvc_spark.streaming.chunk import AudioChunk, Gap
from rvc_spark.streaming.sinks import Packet, RunInfo, Words
from rvc_spark.streaming.stats import StreamStats
from rvc_spark.streaming.take import TakeStore
from rvc_spark.widgets import LivePlayer, Take, play
from rvc_spark.widgets.live_columns import BANDS, LiveColumns

RATE = 24_000
MAX_OUTPUT = 200_000  # characters of a cell's output
MAX_STATE = 30_000  # characters of a notebook's saved widget state


def voice(seconds: float, rate: int = RATE, hz: float = 200.0) -> np.ndarray:
    """A gliding harmonic tone in a little noise, float32 [n]; its pitch is `pitch_at`."""
    times = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(hz + 50 * np.sin(np.pi * times)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 8))
    return (0.2 * tone + 0.001 * np.random.default_rng(0).normal(size=len(times))).astype(np.float32)


class Posted(list):
    """What a player sent: (message, buffers)."""

    def of(self, kind: str) -> list[dict]:
        return [message for message, _ in self if message["t"] == kind]

    def pcm(self) -> list[tuple[dict, list[bytes]]]:
        return [(message, buffers) for message, buffers in self if message["t"] == "pcm"]


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Posted:
    messages = Posted()
    monkeypatch.setattr(LivePlayer, "send", lambda self, content, buffers=None: messages.append((content, buffers)))
    return messages


def feed(player: LivePlayer, samples: np.ndarray, packet: int = 2_000) -> None:
    """A whole run, float32 [n, C]."""
    player.prepare()
    player.begin(RunInfo(RATE, samples.shape[1], 0.3, 0.2, "a <b> title"))
    for seq, start in enumerate(range(0, len(samples), packet)):
        end = min(len(samples), start + packet)
        player.packet(Packet(seq, start, samples[start:end], last=end == len(samples)))
    player.end(True)


# ---- messages --------------------------------------------------------------------------------------------------------


def test_floats_arrive_bit_by_bit_with_their_places(posted: Posted) -> None:
    samples = np.random.default_rng(0).normal(0, 0.3, (23_456, 2)).astype(np.float32)
    feed(LivePlayer(capture=True), samples)
    opening = posted.of("open")[0]
    assert opening["run"] == 1 and opening["rate"] == RATE and opening["channels"] == 2 and opening["capture"] is True
    assert opening["lead"] == 0.3 and opening["prebuffer"] == 0.2 and opening["title"] == "a <b> title"
    assert opening["bands"] == BANDS and opening["hop"] == 240.0 and opening["top_hz"] == 12_000.0
    assert b"".join(buffers[0] for _, buffers in posted.pcm()) == samples.tobytes()
    assert [message["seq"] for message, _ in posted.pcm()] == list(range(12))
    assert [message["start"] for message, _ in posted.pcm()] == list(range(0, 23_456, 2_000))
    assert {message["fmt"] for message, _ in posted.pcm()} == {"f32"}
    assert posted.of("end") == [{"t": "end", "run": 1, "count": 12, "frames": 23_456}]
    json.dumps([message for message, _ in posted])


def test_sixteen_bits_are_dithered_and_silence_stays_silent(posted: Posted) -> None:
    quiet = np.full((24_000, 1), 0.3 / 32_768, np.float32)  # below half a step: plain rounding would lose it
    quiet[:2_400] = 0.0
    feed(LivePlayer(format="i16", spectrogram=False), quiet)
    sent = np.frombuffer(b"".join(buffers[0] for _, buffers in posted.pcm()), "<i2")
    assert len(sent) == len(quiet) and not sent[:2_400].any()
    assert sent[2_400:].mean() == pytest.approx(0.3, abs=0.03) and np.abs(sent).max() <= 2
    assert {len(buffers) for _, buffers in posted.pcm()} == {1} and posted.of("open")[0]["bands"] == 0


def test_columns_travel_with_the_packets_and_are_complete(posted: Posted) -> None:
    feed(LivePlayer(), voice(1.5)[:, None])
    columns = [message["cols"] for message, _ in posted.pcm()]
    assert sum(columns) == 150 and max(columns) <= 40
    for message, buffers in posted.pcm():
        assert len(buffers) == (3 if message["cols"] else 1)
        if message["cols"]:
            assert len(buffers[1]) == BANDS * message["cols"] and len(buffers[2]) == 4 * message["cols"]


def test_a_new_run_counts_from_the_start(posted: Posted) -> None:
    player = LivePlayer()
    player.words(Words("nobody is there yet"))
    assert posted == []
    for _ in range(2):
        feed(player, voice(0.3)[:, None])
    player.words(Words("making", 0.3, None, ("sentence 2 is missing: x",)))
    player.pause()
    player.resume()
    player.stop()
    assert [message["run"] for message in posted.of("open")] == [1, 2]
    assert [message["seq"] for message, _ in posted.pcm()] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert posted.of("words")[0] == {
        "t": "words", "run": 2, "status": "making", "progress": {"made": 0.3, "total": None},
        "gaps": ["sentence 2 is missing: x"],
    }  # fmt: skip
    assert [message["t"] for message, _ in posted[-3:]] == ["pause", "resume", "stop"]


def test_the_beginning_is_sent_again_until_a_page_answers(posted: Posted, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(
        "rvc_spark.widgets.player.time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    )
    player = LivePlayer(spectrogram=False)
    player.begin(RunInfo(RATE, 1, 0.3, 0.2))
    samples = voice(3.0)[:, None]
    for seq in range(30):
        player.packet(Packet(seq, 2_400 * seq, samples[2_400 * seq : 2_400 * seq + 2_400]))
        now[0] += 0.1
        if seq == 12:
            player._heard(player, {"t": "ready", "run": 1, "mode": "worklet", "state": "running"}, [])
    numbers = [message["seq"] for message, _ in posted.pcm()]
    assert len(posted.of("open")) == 3  # once, and again at 0.25 and 0.8 s; a page answered before 2 s
    assert numbers == [*range(4), *range(4), *range(4, 10), *range(10), *range(10, 30)]


def test_a_page_that_was_shown_later_gets_what_there_is(posted: Posted) -> None:
    player = LivePlayer(spectrogram=False)
    player._heard(player, {"t": "ready", "run": None, "mode": "none", "state": "unopened"}, [])
    assert posted == []
    player.begin(RunInfo(RATE, 1, 0.3, 0.2))
    player.packet(Packet(0, 0, voice(0.1)[:, None]))
    player._heard(player, {"t": "ready", "run": None, "mode": "none", "state": "unopened"}, [])
    assert [message["t"] for message, _ in posted] == ["open", "pcm", "open", "pcm"]


def test_news_of_the_page_are_taken_with_care(posted: Posted) -> None:
    heard: list[str] = []
    player = LivePlayer(listener=heard.append)
    player.begin(RunInfo(RATE, 1, 0.3, 0.2))
    tick = {"t": "tick", "run": 1, "played": 12_000, "buffered": 6_000, "underruns": 1, "gaps": 0, "lost": 2}
    for content in (
        {"t": "ready", "run": 1, "mode": "worklet", "state": "running"}, {**tick, "level": 0.1, "state": "playing"},
        "text", None, {"t": "tick", "run": 7, "played": 1}, {"t": "format the disk"}, {"t": "stop", "run": 9},
        {"t": "tick", "run": 1, "played": "many", "buffered": -1, "lost": float("nan"), "state": "x" * 9_999},
        {"t": "pause", "run": 1}, {"t": "bye", "run": None}, {"t": "ended", "run": 1, "played": 24_000},
    ):  # fmt: skip
        player._heard(player, content, [])
    assert heard == ["news", "news", "news", "pause", "bye", "news"]
    news = player.feedback()
    assert (news.mode, news.played, news.buffered, news.underruns, news.lost) == ("worklet", 1.0, 0.25, 1, 2)
    assert news.ticks == 2 and news.ended and len(news.state) == 20
    assert asyncio.run(player.ready(0.0))


def test_a_format_that_does_not_exist_is_refused() -> None:
    with pytest.raises(StreamError, match="mp3"):
        LivePlayer(format="mp3")


def test_on_colab_the_widget_manager_is_enabled_and_packets_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated as its sources say; it was not run there."""
    from anywidget import _util

    enabled: list[int] = []
    output = types.ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: enabled.append(1)
    for name, module in (("google.colab", types.ModuleType("google.colab")), ("google.colab.output", output)):
        monkeypatch.setitem(sys.modules, name, module)
    _util.enable_custom_widget_manager_once.cache_clear()
    assert LivePlayer().format == LivePlayer().format == "i16" and enabled == [1]
    assert LivePlayer(format="f32").format == "f32"
    _util.enable_custom_widget_manager_once.cache_clear()


# ---- the picture that moves along ------------------------------------------------------------------------------------


def columns_of(samples: np.ndarray, rate: int, cuts: Iterator[int]) -> tuple[np.ndarray, np.ndarray]:
    columns, made, start = LiveColumns(rate), [], 0
    while start < len(samples):
        end = min(len(samples), start + next(cuts))
        made.append(columns.push(samples[start:end, None], last=end == len(samples)))
        start = end
    return np.concatenate([mel for mel, _ in made]), np.concatenate([f0 for _, f0 in made])


@pytest.mark.parametrize("rate", [22_050, 40_000])
def test_columns_do_not_depend_on_how_the_sound_is_cut(rate: int) -> None:
    samples = voice(1.2, rate)
    random = np.random.default_rng(rate)
    even = columns_of(samples, rate, iter(lambda: rate // 10, None))
    uneven = columns_of(samples, rate, iter(lambda: int(random.integers(1, rate // 4)), None))
    assert np.array_equal(even[0], uneven[0]) and np.array_equal(even[1], uneven[1])
    assert even[0].shape == (120, BANDS)
    times = np.arange(10, 110) / 100
    expected = 200 + 50 * np.sin(np.pi * times)
    assert np.abs(even[1][10:110] - expected).max() < 3.0


def test_levels_are_relative_to_full_scale() -> None:
    times = np.arange(RATE) / RATE
    for amplitude, level in ((1.0, 0.0), (0.1, -20.0), (0.001, -60.0)):
        mel, _ = columns_of((amplitude * np.sin(2 * np.pi * 1000 * times)).astype(np.float32), RATE, iter([RATE]))
        assert mel[20:80].max() / 255 * 80 - 80 == pytest.approx(level, abs=2.0)
    mel, f0 = columns_of(np.zeros(RATE, np.float32), RATE, iter([RATE]))
    assert not mel.any() and not f0.any()


# ---- what stays behind -----------------------------------------------------------------------------------------------


def take_of(samples: np.ndarray, gaps: tuple[Gap, ...] = ()) -> Take:
    store = TakeStore(RATE, 1)
    store.append(samples[:, None])
    return Take(store, "A <script> & more", gaps, lambda: StreamStats("ended", store.seconds))


def test_a_take_shows_itself_as_a_small_player_with_a_picture(tmp_path: Path) -> None:
    take = take_of(voice(6.0), (Gap(2, "Three.", SpeechError("<no> voice", "Try again.")),))
    markup = take._repr_html_()
    assert len(markup) < MAX_OUTPUT and "<script>" not in markup and "&lt;no&gt; voice" in markup
    heard = read_audio(base64.b64decode(re.search(r"data:audio/ogg;base64,([^\"]+)", markup).group(1)))
    assert heard.seconds == pytest.approx(6.0, abs=0.01)
    picture = Image.open(io.BytesIO(base64.b64decode(re.search(r"data:image/png;base64,([^\"]+)", markup).group(1))))
    picture = np.asarray(picture.convert("RGB")).astype(int)
    blue = (picture == (0, 114, 178)).all(axis=-1)
    rows = [int(np.flatnonzero(column).mean()) for column in blue.T[5:-5] if column.any()]
    assert len(rows) > 0.8 * blue.shape[1]  # the line of the pitch, where the pitch is
    mel = 2595 * np.log10(1 + np.array([250.0, 150.0]) / 700)
    top, bottom = (72 - mel / (2595 * np.log10(1 + 8000 / 700)) * 72).round()
    assert abs(min(rows) - top) <= 2 and abs(max(rows) - bottom) <= 2
    assert take._repr_html_() is not None and "the first" not in markup
    assert np.array_equal(read_audio(take.save(tmp_path / "a.flac")).samples, read_audio(tmp_path / "a.flac").samples)
    assert take.seconds == 6.0 and take.audio.frames == 6 * RATE and take.part(1.0, 2.0).seconds == 1.0


def test_of_a_long_take_the_beginning_stays_and_that_is_said(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 100 * RATE).astype(np.float32)
    take = take_of(noise)
    markup = take._repr_html_()
    assert len(markup) < MAX_OUTPUT
    said = re.search(r"100\.00 s at 24000 Hz; here the first (\d+) s", markup)
    heard = read_audio(base64.b64decode(re.search(r"data:audio/ogg;base64,([^\"]+)", markup).group(1)))
    assert said and int(said.group(1)) == round(heard.seconds) and 5 < heard.seconds < 60
    assert read_audio(take.save(tmp_path / "whole.wav")).frames == len(noise)
    with pytest.raises(OutputError):
        take.save(tmp_path / "a.xyz")
    take.close()
    with pytest.raises(StreamError, match="closed"):
        _ = take.audio


# ---- play without a kernel -------------------------------------------------------------------------------------------


def pieces(count: int, seconds: float = 0.25) -> Iterator[AudioChunk]:
    whole = voice(count * seconds)
    size = round(seconds * RATE)
    for number in range(count):
        yield AudioChunk(samples=whole[number * size : (number + 1) * size], rate=RATE, seq=number)


def test_without_a_kernel_sound_is_collected_and_written(tmp_path: Path) -> None:
    playing = play(pieces(8), "a script", save=tmp_path / "a.wav", wait=True)
    assert playing.player is None and playing.state == "ended" and playing.take.seconds == 2.0
    assert read_audio(tmp_path / "a.wav").frames == 2 * RATE
    assert np.array_equal(playing.take.audio.samples, voice(2.0))
    assert repr(playing).startswith("a script: ended: 2.0 s made")
    assert play(Audio(voice(1.0), RATE)).wait().seconds == 1.0
    assert play((voice(1.0), RATE), ahead=5, lead=0.5).wait().seconds == 1.0


def test_what_cannot_be_played_is_said_before_anything_happens(tmp_path: Path) -> None:
    for wrong, words in (({"lead": 99}, "lead"), ({"ahead": 0}, "ahead"), ({"save": tmp_path / "a.xyz"}, "suffix")):
        with pytest.raises((StreamError, OutputError), match=words):
            play(pieces(1), **wrong)
    with pytest.raises(TypeError, match="loud"):
        play(pieces(1), loud=True)
    with pytest.raises(StreamError, match="nothing is made"):
        play(iter([])).wait()


def test_a_script_that_ends_while_something_plays_is_not_held_up(tmp_path: Path) -> None:
    code = (
        "import itertools, sys, time; import numpy as np\n"
        "from rvc_spark.widgets import play\n"
        "def endless():\n"
        "    for _ in itertools.count():\n"
        "        time.sleep(0.01); yield (np.full(2400, 0.1, np.float32), 24000)\n"
        f"playing = play(endless(), save={str(tmp_path / 'a.wav')!r})\n"
        "while playing.stats().made < 1: time.sleep(0.01)\n"
        "print('end', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "end\n" and done.stderr == ""
    assert list(tmp_path.iterdir()) == []


# ---- play in a real kernel, as papermill and nbval run one -----------------------------------------------------------

SETUP = """
import asyncio, threading, time
import numpy as np
from rvc_spark.widgets import play

def pieces(count, pause=0.02, fail=False):
    for number in range(count):
        time.sleep(pause)
        yield (0.2 * np.sin(np.arange(6000) / (20 + number % 5)).astype(np.float32), 24000)
    if fail:
        raise ValueError("the <engine> fell over")

def ours():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rvc-spark")]

async def settled():
    end = time.monotonic() + 20
    while ours() and time.monotonic() < end:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    return ours()

def page(playing, kind, **more):
    playing.player._heard(None, {"t": kind, "run": playing.player.run, **more}, [])
"""
CELLS = {
    "waits for what is made, not for what is heard": """
began = time.monotonic()
first = play(pieces(40, 0.005), "ten seconds", wait=True, save="a.flac")
assert time.monotonic() - began < 20 and first.take.seconds == 10.0, first
assert first.state == "playing" and first.player.format == "f32", first
""",
    "one thing is heard at a time": """
second = play(pieces(400), "another")
assert first.state == "stopped", first
while not second.stats().packets: await asyncio.sleep(0.02)
second.pause(); second.resume(); assert second.stop() and second.state == "stopped"
assert await settled() == []
""",
    "an error is shown, and what came before it kept": """
third = play(pieces(8, fail=True), "fails")
try:
    third.wait()
except ValueError as error:
    assert "fell over" in str(error)
else:
    raise AssertionError("nothing was raised")
assert third.take.seconds == 2.0
""",
    "heard to its end": """
ended = []
fourth = play(pieces(4), "short", on_end=lambda playing: ended.append(threading.current_thread().name))
take = await fourth.played()
await settled()
assert fourth.state == "ended" and take.seconds == 1.0 and fourth.stats().sent == 1.0, fourth
assert ended == ["MainThread"], ended
""",
    "buttons of the page": """
fifth = play(pieces(400), "buttons")
while not fifth.stats().packets: await asyncio.sleep(0.02)
page(fifth, "pause"); assert fifth.state == "paused"
page(fifth, "resume"); assert fifth.state == "playing"
await asyncio.sleep(0.7)
page(fifth, "ready", mode="worklet", state="suspended")  # the browser wants a click first
await asyncio.sleep(0.2)
held = fifth.stats().packets
await asyncio.sleep(0.4)
assert fifth.stats().packets == held and fifth.state == "playing", fifth
page(fifth, "ready", mode="worklet", state="running")
await asyncio.sleep(0.4)
assert fifth.stats().packets > held, fifth
page(fifth, "stop")
assert await settled() == [] and fifth.state == "stopped"
""",
    "a busy cell is no closed page": """
sixth = play(pieces(4000), "page")
async def ticking(seconds):  # as the page does
    for _ in range(round(seconds / 0.25)):
        page(sixth, "tick", state="playing", played=0); await asyncio.sleep(0.25)
await ticking(0.75)
time.sleep(1.2)
await ticking(0.5)
assert sixth.state == "playing", sixth
""",
    "a closed page is one": """
gone = time.monotonic()
assert await settled() == [] and sixth.state == "page closed", sixth
""",
    "good-bye": """
seventh = play(pieces(4000), "bye")
while not seventh.stats().packets: await asyncio.sleep(0.02)
page(seventh, "tick", state="playing", played=0)
page(seventh, "bye")
page(seventh, "tick", state="stopped", played=0)  # falling silent is no sign of life
assert await settled() == [] and seventh.state == "page closed", seventh
""",
    "an interrupt": """
import os, signal
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    play(pieces(4000), "interrupted", wait=True)
except KeyboardInterrupt:
    assert ours() == []
else:
    raise AssertionError("the interrupt was lost")
""",
    "a kernel may go down while something plays": "eighth = play(pieces(4000), 'the last'); print(eighth)",
}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any, Path]:
    """The cells above, run once by nbclient: outputs by title, the notebook, and its folder."""
    folder = tmp_path_factory.mktemp("kernel")
    cells = [nbformat.v4.new_code_cell(code) for code in (SETUP, *CELLS.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        store_widget_state=True, shutdown_kernel="graceful",
    )  # fmt: skip
    client.execute()
    return dict(zip(CELLS, notebook.cells[1:], strict=True)), notebook, folder


def outputs(cell: Any) -> list[dict]:
    return [output["data"] for output in cell.outputs if "data" in output]


def test_nothing_hangs_in_a_kernel_without_a_page(executed: tuple[dict[str, Any], Any, Path]) -> None:
    _, notebook, folder = executed
    assert [cell.execution_count for cell in notebook.cells] == list(range(1, len(notebook.cells) + 1))
    assert read_audio(folder / "a.flac").seconds == 10.0
    assert [path.name for path in folder.iterdir()] == ["a.flac"]


def test_a_stored_notebook_keeps_a_small_player_and_no_sound_of_the_live_one(
    executed: tuple[dict[str, Any], Any, Path],
) -> None:
    cells, notebook, _ = executed
    shown = outputs(cells["waits for what is made, not for what is heard"])
    assert len(shown) == 1 and "data:audio/ogg" in shown[0]["text/html"]
    live = "application/vnd.jupyter.widget-view+json" in shown[0]  # beside it while it plays on; older kernels can
    assert live or "stopped:" in shown[0]["text/plain"]  # replace it later, when another cell is running
    stored = [len(data.get("text/html", "")) for cell in notebook.cells for data in outputs(cell)]
    assert stored and max(stored) < MAX_OUTPUT
    state = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    sizes = [len(json.dumps(model)) for model in state.values()]
    assert max(sizes) < MAX_STATE
    assert "data:audio" not in json.dumps(state)


def test_at_the_end_only_the_small_player_is_left(executed: tuple[dict[str, Any], Any, Path]) -> None:
    cells, _, _ = executed
    for title, words in (("one thing is heard at a time", "stopped:"), ("heard to its end", "ended:")):
        (shown,) = outputs(cells[title])
        assert set(shown) == {"text/html", "text/plain"} and words in shown["text/plain"], title
    (failed,) = outputs(cells["an error is shown, and what came before it kept"])
    assert "ValueError: the &lt;engine&gt; fell over" in failed["text/html"] and "<engine>" not in failed["text/html"]


def test_no_thread_of_a_test_is_left() -> None:
    assert [thread for thread in threading.enumerate() if thread.name.startswith("rvc-spark")] == []
