"""A stream that is listened to, the engines in a table, and a line that changes in place."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rvc_spark.audio import Audio
from rvc_spark.errors import AudioError, ConfigError, SpeechError
from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.tts.choose import Speakers
from rvc_spark.widgets import progress
from rvc_spark.widgets.engines import compare_engines, ready_engines, show_engines, show_server
from rvc_spark.widgets.listening import Heard, listen, show_stream, stream_figure
from rvc_spark.widgets.plots import show_figure
from rvc_spark.widgets.progress import ProgressLine
from rvc_spark.widgets.sound import show_audio
from rvc_spark.widgets.tables import Table

RATE = 16_000
TEXT = "Good morning, said the <robot>."


def sound(seconds: float, level: float = 0.5, rate: int = RATE) -> Audio:
    return Audio(np.full(round(seconds * rate), level, np.float32), rate)


def stream(closed: list[str], *pieces: Audio, error: BaseException | None = None) -> Iterator[Audio]:
    try:
        yield from pieces
        if error:
            raise error
    finally:
        closed.append("closed")


def heard(times: tuple[float, ...], lengths: tuple[float, ...], title: str = "") -> Heard:
    return Heard(sound(sum(lengths)), times, lengths, title)


# ------------------------------------------------------------------------------------------------------- listening


def test_listening_keeps_every_sample_in_its_order_and_the_times_rise() -> None:
    closed, told = [], []
    given = [sound(0.5, 0.1), sound(0.25, 0.2), sound(1.0, 0.3)]
    result = listen(stream(closed, *given), title="x", on_piece=lambda passed, known: told.append((passed, known)))
    assert np.array_equal(result.audio.samples, np.concatenate([piece.samples for piece in given]))
    assert result.lengths == (0.5, 0.25, 1.0) and result.times == tuple(sorted(result.times))
    assert [known for _, known in told] == [0.5, 0.75, 1.75] and [passed for passed, _ in told] == list(result.times)
    assert closed == ["closed"]


def test_stereo_is_mixed_down() -> None:
    both = Audio(np.stack([np.full(100, 0.2), np.full(100, 0.4)]).astype(np.float32), RATE)
    assert listen([both]).audio.samples == pytest.approx(0.3)


@pytest.mark.parametrize("error", [SpeechError("the engine failed", "Try again."), KeyboardInterrupt()])
def test_a_stream_that_fails_or_is_stopped_is_closed(error: BaseException) -> None:
    closed: list[str] = []
    with pytest.raises(type(error)):
        listen(stream(closed, sound(0.1), error=error))
    assert closed == ["closed"]


def test_a_listener_who_fails_leaves_no_work_behind() -> None:
    closed: list[str] = []

    def stop(_passed: float, _known: float) -> None:
        raise KeyboardInterrupt

    pieces = stream(closed, sound(0.1), sound(0.1))
    with pytest.raises(KeyboardInterrupt):
        listen(pieces, on_piece=stop)
    assert closed == ["closed"] and next(pieces, None) is None


def test_what_is_no_stream_of_one_engine_is_refused() -> None:
    with pytest.raises(AudioError, match="no sound"):
        listen([])
    with pytest.raises(AudioError, match="22050 Hz, the first has 16000"):
        listen([sound(0.1), sound(0.1, rate=22_050)])


def test_a_player_waits_where_the_next_piece_is_late_and_only_there() -> None:
    quick = heard((0.2, 0.9, 1.0), (1.0, 0.5, 2.0))
    assert quick.starts == pytest.approx((0.2, 1.2, 1.7)) and quick.waiting_seconds == pytest.approx(0.0)
    late = heard((0.2, 2.0, 2.1), (1.0, 0.5, 2.0))
    assert late.starts == pytest.approx((0.2, 2.0, 2.5)) and late.waiting_seconds == pytest.approx(0.8)
    assert late.first_seconds == 0.2 and late.elapsed == 2.1 and late.real_time_factor == pytest.approx(0.6)
    assert "0.80 s of waiting" in repr(late) and "waiting" not in repr(quick) and "3 pieces" in repr(quick)
    assert repr(heard((0.1,), (1.0,))).startswith("1 piece, 1.00 s")


def test_the_picture_shows_what_was_made_and_what_was_played() -> None:
    figure = stream_figure(heard((0.5, 2.0), (1.0, 2.0), "costs $5 & <b>"))
    made, played = figure.axes[0].lines[:2]
    assert list(made.get_xdata()) == [0.0, 0.5, 2.0, 4.0] and list(made.get_ydata()) == [0.0, 1.0, 3.0, 3.0]
    assert list(played.get_xdata()) == [0.5, 1.5, 2.0, 4.0] and list(played.get_ydata()) == [0.0, 1.0, 1.0, 3.0]
    with pytest.raises(ConfigError, match="light, dark"):
        stream_figure(heard((0.5,), (1.0,)), theme="neon")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_of_odd_streams_render(theme: str) -> None:
    many = heard(tuple(np.linspace(0.1, 9.0, 500)), (0.02,) * 500)
    for odd in (heard((0.0,), (0.001,)), heard((30.0, 30.0), (0.1, 0.1)), many):
        png = show_figure(stream_figure(odd, theme=theme))._repr_png_()
        assert Image.open(io.BytesIO(png)).size == (800, 290)


def test_a_heard_stream_shows_itself_without_markup_of_its_title() -> None:
    html = heard((0.1, 0.2), (0.5, 0.5), "<script>")._repr_html_()
    assert "<script>" not in html and "data:audio/ogg;base64," in html and "data:image/png;base64," in html
    assert 'alt="Sound made and played over time; 2 pieces' in html


# -------------------------------------------------------------------------------------------------------- progress


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list:
    """What was displayed; an update replaces."""
    lines: list = []

    def display(line, display_id: bool) -> SimpleNamespace:
        assert display_id
        lines.append(line)
        return SimpleNamespace(update=lambda new: lines.__setitem__(-1, new))

    monkeypatch.setattr(progress, "display", display)
    return lines


def test_progress_is_one_line_that_changes(shown: list) -> None:
    line = ProgressLine()
    assert shown == []
    for fraction, message in ((-1.0, "a"), (0.5, "b"), (7.0, "<c>")):
        line(SimpleNamespace(fraction=fraction, message=message))
    (last,) = shown
    assert repr(last) == "100 % <c>" and 'value="1.000"' in last._repr_html_() and "&lt;c&gt;" in last._repr_html_()
    line.say("done")
    assert repr(shown[0]) == "done" and "<progress" not in shown[0]._repr_html_()


def test_a_shown_stream_counts_along(shown: list) -> None:
    closed: list[str] = []
    result = show_stream(stream(closed, sound(0.5), sound(0.25)), "mine")
    assert closed == ["closed"] and result.title == "mine"
    assert [repr(line) for line in shown] == [repr(result)]


# ---------------------------------------------------------------------------------------------------------- tables


def test_a_table_holds_words_and_players_and_no_markup() -> None:
    table = Table(("<who>", "sound"), (("<b>a</b>", show_audio(sound(0.2))), ("b", "–")), "1 < 2", marked=1)
    html = table._repr_html_()
    assert "&lt;who&gt;" in html and "&lt;b&gt;a" in html and "1 &lt; 2" in html and html.count("<audio") == 1
    assert html.count("background:rgba") == 1 and html.count("<tr") == 3
    assert repr(table).splitlines() == ["<who> | sound", "<b>a</b> | 0.20 s at 16000 Hz", "b | –", "1 < 2"]


SURVEY = {"triton": Choice("missing", "no server"), "spark": Choice("ready", "here"), "espeak": Choice("ready", "y")}


def test_every_engine_is_shown_with_its_state_and_the_choice_with_its_reason() -> None:
    assert ready_engines(SURVEY) == ["spark", "espeak"]
    table = show_engines(SURVEY, Choice("espeak", "no GPU"))
    assert [row[0] for row in table.rows] == ["triton", "spark", "espeak"]
    assert table.rows[0][1:] == ("✗ missing", "no server") and table.rows[1][1:] == ("✓ ready", "here")
    assert table.marked == 2 and table.caption == "espeak speaks: no GPU."
    assert show_engines(SURVEY).caption == "" and show_engines(SURVEY).marked is None


def test_a_server_is_shown_with_who_ends_it() -> None:
    assert "none" in repr(show_server(None))
    for owned, words in ((True, "with this notebook"), (False, "not by this notebook")):
        server = SimpleNamespace(address="127.0.0.1:8001", kind=Choice("embedded", "no Docker"), owned=owned)
        shown = repr(show_server(server))
        assert words in shown and "127.0.0.1:8001 | embedded | no Docker" in shown


# ------------------------------------------------------------------------------------------------------ comparison


class Trio:
    """Stands in for `Speakers`: three engines of which one fails, and what each was given."""

    def __init__(self) -> None:
        self.given: list[tuple] = []

    def survey(self) -> dict[str, Choice]:
        return {**SURVEY, "triton": Choice("ready", "a server answers")}

    def engine(self, name: str, values: dict | None) -> tuple[SimpleNamespace, Choice]:
        self.given.append((name, values))

        def pieces(voice: str, text: str) -> Iterator[Audio]:
            if name == "triton":
                raise SpeechError(f"nothing came for {text}", "Try <again>.")
            return iter([sound(0.5), sound(0.25)])

        licence = "" if name == "espeak" else "share alike"
        return SimpleNamespace(name=name, licence=licence, stream=pieces), Choice(name, "as set")

    def speaker_file(self, engine: SimpleNamespace, reference: str, transcript: str | None) -> str:
        self.given.append((engine.name, reference, transcript))
        return "voice"


def test_engines_are_compared_each_with_what_it_takes_and_one_that_fails_spoils_no_other() -> None:
    trio = Trio()
    compared = compare_engines(TEXT, reference="me.wav", transcript="Me.", seed=7, speakers=trio)
    assert trio.given == [
        ("triton", {"seed": 7}), ("triton", "me.wav", "Me."), ("spark", {"seed": 7}), ("spark", "me.wav", "Me."),
        ("espeak", None), ("espeak", "me.wav", None),
    ]  # fmt: skip
    assert [(turn.name, turn.heard is None) for turn in compared.turns] == [
        ("triton", True), ("spark", False), ("espeak", False),
    ]  # fmt: skip
    assert compared["spark"].heard.audio.seconds == 0.75 and isinstance(compared["triton"].error, SpeechError)
    html = compared._repr_html_()
    assert html.count("<audio") == 2 and "share alike" in html and "no weights" in html
    assert "Try &lt;again&gt;" in html and "&lt;robot&gt;" in html and "<robot>" not in html
    with pytest.raises(ConfigError, match="piper"):
        compare_engines(TEXT, engines=["espeak", "piper"], speakers=trio)
    with pytest.raises(ConfigError, match="triton, spark, espeak"):
        _ = compared["piper"]


def test_real_engines_are_compared_and_repeat_themselves(spark_folder, tmp_path) -> None:
    config = RVCConfig(spark=spark_folder, temp=tmp_path, device="cpu", offline=True, triton_host="192.0.2.1")
    speakers = Speakers(config)
    try:
        first, second = (
            compare_engines("Good morning to all of you.", reference=sound(1.0), seed=3, speakers=speakers)
            for _ in range(2)
        )
    finally:
        speakers.close()
    assert [turn.name for turn in first.turns] == ["spark", "espeak"]
    assert first["spark"].heard is not None, first["spark"].error
    assert np.array_equal(first["spark"].heard.audio.samples, second["spark"].heard.audio.samples)
    assert isinstance(first["espeak"].error, SpeechError), "a constant has no pitch to meet"
    assert "CC BY-NC-SA" in first["spark"].licence
