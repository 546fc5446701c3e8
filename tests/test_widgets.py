"""What a notebook shows, tested without a browser: bytes that decode to the same sound, pictures that hold it."""

from __future__ import annotations

import base64
import datetime
import io
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import ipywidgets
import numpy as np
import pytest
from PIL import Image

from rvc_spark.audio import Audio, EncodeOptions, encode_audio, read_audio
from rvc_spark.errors import AudioError, ConfigError, OutputError, PitchError
from rvc_spark.infer.mel import hz_to_mel, mel_to_hz
from rvc_spark.infer.settings import ConversionSettings
from rvc_spark.rvc_config import Choice
from rvc_spark.widgets.controls import MAX_UPLOAD_BYTES, clear_uploads, slider, tooltip, uploads
from rvc_spark.widgets.engines import Comparison, EngineTurn
from rvc_spark.widgets.listening import Heard
from rvc_spark.widgets.panels import Verbs, VoicePanel
from rvc_spark.widgets.plots import conversion_figure, save_figure, show_conversion, show_figure
from rvc_spark.widgets.sound import MAX_BYTES, OGG_STEPS, show_audio
from rvc_spark.widgets.spectrogram import FLOOR_DB, f0_line, mel_picture, outline

RATE = 16_000
MODIFIED = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def tone(hz: float, seconds: float = 1.0, rate: int = RATE, level: float = 0.5) -> Audio:
    time = np.arange(round(seconds * rate)) / rate
    return Audio((level * np.sin(2 * np.pi * hz * time)).astype(np.float32), rate)


# ---------------------------------------------------------------------------------------------------- spectrogram


@pytest.mark.parametrize("hz", [90.0, 440.0, 3000.0])
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_a_tone_is_brightest_at_its_own_frequency(hz: float, rate: int) -> None:
    top = 4000.0
    picture = mel_picture(tone(hz, rate=rate).samples, rate, top_hz=top, bands=80)
    column = picture.levels[:, picture.levels.shape[1] // 2]
    found = mel_to_hz((column.argmax() + 1) * picture.top_mel / (80 + 1))
    band_mel = picture.top_mel / 81
    assert abs(hz_to_mel(found) - hz_to_mel(hz)) < 1.5 * band_mel


def test_levels_are_relative_to_the_loudest_and_have_a_floor() -> None:
    for level in (1e-4, 1.0):
        levels = mel_picture(tone(300, level=level).samples, RATE, top_hz=4000).levels
        assert levels.max() == pytest.approx(0.0, abs=1e-4) and levels.min() >= FLOOR_DB
    assert (mel_picture(np.zeros(5000, np.float32), RATE, top_hz=4000).levels == FLOOR_DB).all()


def test_bands_above_half_the_rate_stay_dark_and_low_bands_are_not_empty() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    levels = mel_picture(noise, RATE, top_hz=12_000, bands=120).levels.mean(axis=1)
    nyquist_band = int(hz_to_mel(8000) / hz_to_mel(12_000) * 121)
    assert (levels[nyquist_band + 1 :] == FLOOR_DB).all()
    assert (levels[: nyquist_band - 2] > -50).all()


@pytest.mark.parametrize("samples", [1, 3, 100, 16_000, 3_000_000])
def test_pictures_of_any_length_have_few_columns_and_the_whole_time(samples: int) -> None:
    sound = np.random.default_rng(1).standard_normal(samples).astype(np.float32)
    picture = mel_picture(sound, RATE, top_hz=8000, columns=500)
    assert 1 <= picture.levels.shape[1] <= 500
    assert picture.levels.shape[1] * picture.step == pytest.approx(samples / RATE, rel=0.02, abs=0.006)
    times, low, high = outline(sound, RATE, columns=300)
    assert len(times) == min(samples, 300) and high.max() == sound.max() and low.min() == sound.min()
    assert 0 < times[0] < times[-1] + 1e-9 and times[-1] < samples / RATE


def test_an_event_in_a_long_sound_is_seen_where_it_happens() -> None:
    samples = np.zeros(120 * RATE, np.float32)
    samples[60 * RATE : 61 * RATE] = tone(1000).samples
    picture = mel_picture(samples, RATE, top_hz=8000, columns=400)
    seconds = picture.levels.max(axis=0).argmax() * picture.step
    assert 59.5 <= seconds <= 61


def test_the_f0_line_breaks_where_nothing_is_voiced() -> None:
    times, hz = f0_line(np.array([100.0, 0.0, np.nan, -1.0, np.inf, 200.0]))
    assert np.isnan(hz[1:5]).all() and hz[0] == 100 and hz[5] == 200
    assert times == pytest.approx(np.arange(6) * 0.01)
    times, hz = f0_line(np.full(360_000, 150.0), points=4000)
    assert len(hz) <= 4000 and times[-1] == pytest.approx(3600, rel=0.01)


# --------------------------------------------------------------------------------------------------------- figure


def test_the_figure_shows_both_sounds_on_one_time_axis_with_both_pitches() -> None:
    source, result = tone(110, 1.0), tone(220, 2.0, 32_000)
    figure = conversion_figure(
        source, result, source_f0=np.full(100, 110.0), result_f0=np.full(200, 220.0), title="costs $5, not $6"
    )
    assert len([axes for axes in figure.axes if axes.get_label() != "<colorbar>"]) == 5
    assert figure.axes[0].get_xlim() == pytest.approx((0.0, 2.0))
    assert all(axes.get_shared_x_axes().joined(figure.axes[0], axes) for axes in figure.axes[:5])
    drawn = figure.axes[1].lines[0].get_ydata(), figure.axes[3].lines[0].get_ydata()
    assert mel_to_hz(drawn[0]) == pytest.approx(110.0) and mel_to_hz(drawn[1]) == pytest.approx(220.0)
    labels = [text.get_text() for text in figure.axes[4].get_legend().get_texts()]
    assert labels == ["source, median 110 Hz", "result, median 220 Hz"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_render_for_odd_input(theme: str) -> None:
    odd = [
        (tone(100, 3 / RATE), tone(100, 3 / RATE), None, None),
        (
            Audio(np.zeros(RATE, np.float32), RATE),
            Audio(np.zeros(2 * RATE, np.float32), 32_000),
            np.zeros(100),
            np.zeros(0),
        ),
        (Audio(np.ones((2, 800), np.float32), 8_000), tone(100, 0.1, 192_000), None, np.array([np.nan, np.inf, 80.0])),
    ]
    for source, result, source_f0, result_f0 in odd:
        figure = conversion_figure(
            source, result, source_f0=source_f0, result_f0=result_f0, title="$\\frac{\x00\n" * 200, theme=theme
        )
        picture = show_figure(figure, "what is seen")
        image = Image.open(io.BytesIO(picture._repr_png_()))
        assert image.size[0] == 1000 and repr(picture) == "what is seen"


def test_figures_refuse_what_they_cannot_draw(tmp_path) -> None:
    sound = tone(100, 0.1)
    with pytest.raises(ConfigError, match="light, dark"):
        conversion_figure(sound, sound, theme="neon")
    for f0 in (np.zeros((2, 3)), ["a", "b"], 5.0):
        with pytest.raises(PitchError, match="source_f0"):
            conversion_figure(sound, sound, source_f0=f0)
    figure = conversion_figure(sound, sound)
    for bad in (tmp_path / "a.txt", tmp_path / "none", tmp_path / "missing" / "a.png"):
        with pytest.raises(OutputError):
            save_figure(figure, bad)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_is_saved_whole(tmp_path) -> None:
    path = save_figure(conversion_figure(tone(100, 0.2), tone(200, 0.2)), tmp_path / "picture.png")
    assert Image.open(path).size[0] == 1000 and [item.name for item in tmp_path.iterdir()] == ["picture.png"]


def test_drawing_touches_no_global_state_of_matplotlib() -> None:
    code = (
        "import sys, numpy as np\n"
        "from rvc_spark.audio import Audio\n"
        "from rvc_spark.widgets import conversion_figure\n"
        "s = Audio(np.zeros(800, np.float32), 8000)\n"
        "conversion_figure(s, s)\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------------------------- sound


def carried(player) -> Audio:
    address = re.search(r'src="data:([^;]+);base64,([^"]+)"', player._repr_html_())
    assert address and address.group(1) == player.mime_type
    return read_audio(base64.b64decode(address.group(2)))


@pytest.mark.parametrize("format", ["ogg", "flac", "wav"])
def test_the_player_carries_the_sound(format: str) -> None:
    sound = tone(440, 1.5, 32_000)
    heard = carried(show_audio(sound, "a tone", format=format))
    assert heard.rate == 32_000 and heard.frames == sound.frames
    error = heard.mono().samples - sound.samples
    assert np.sqrt(np.mean(error**2)) < (0.02 if format == "ogg" else 2e-5)


def test_the_default_player_is_small_and_does_not_change_the_level() -> None:
    sound = tone(200, 10.0, 32_000, level=0.05)
    player = show_audio(sound)
    assert len(player.data) < 32_000 * 10 * 2 / 4
    assert np.abs(carried(player).samples).max() == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize(
    ("rate", "channels", "expected"), [(96_000, 1, 48_000), (44_100, 2, 44_100), (16_000, 6, 16_000)]
)
def test_the_player_offers_what_browsers_play(rate: int, channels: int, expected: int) -> None:
    noise = np.random.default_rng(2).uniform(-0.1, 0.1, (channels, rate // 2)).astype(np.float32)
    heard = carried(show_audio(Audio(noise, rate)))
    assert heard.rate == expected and heard.channels == (2 if channels == 2 else 1)
    assert heard.seconds == pytest.approx(0.5, abs=0.001)


def test_captions_say_what_a_listener_should_know_and_are_never_markup() -> None:
    player = show_audio(tone(100, 2.0, level=1.5), '<script>alert("x")</script>', max_seconds=1.0)
    assert "the first 1 s" in repr(player) and "cut off at 1" in repr(player) and "2.00 s at 16000 Hz" in repr(player)
    assert "<script>" not in player._repr_html_()
    assert "digital silence" in repr(show_audio(Audio(np.zeros(100, np.float32), RATE)))


def noise(seconds: float, channels: int = 1, rate: int = 48_000) -> Audio:
    """The sound that codes worst, and gets louder towards its end."""
    samples = np.random.default_rng(3).uniform(-0.5, 0.5, (channels, round(seconds * rate))).astype(np.float32)
    return Audio(samples * np.linspace(0.2, 1.0, samples.shape[1], dtype=np.float32), rate)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("format", ["ogg", "flac", "wav"])
@pytest.mark.parametrize("seconds", [0.5, 6.0, 60.0])
def test_no_player_makes_the_notebook_large(seconds: float, format: str, channels: int) -> None:
    sound = noise(seconds, channels)
    player = show_audio(sound, format=format)
    assert len(player._repr_html_()) <= 200_000 and len(player.data) <= MAX_BYTES
    heard = carried(player)
    if "only the first" not in player.caption:
        assert heard.seconds == pytest.approx(seconds, abs=0.001)
    else:
        said = float(re.search(r"only the first (\d+) s, as the notebook would grow", player.caption).group(1))
        assert heard.seconds == pytest.approx(said, abs=0.51) and heard.seconds < seconds
        assert len(player.data) > 0.7 * MAX_BYTES, "more could have been kept"


def test_a_longer_sound_is_coded_more_coarsely_before_it_is_cut() -> None:
    lengths, sizes = (2.0, 16.0, 26.0, 44.0), []
    rng = np.random.default_rng(4)
    for seconds in lengths:
        murmur = tone(220, seconds, 48_000, 0.2).samples + 0.004 * rng.standard_normal(round(seconds * 48_000))
        player = show_audio(Audio(murmur.astype(np.float32), 48_000), max_bytes=50_000)
        heard = carried(player)
        sizes.append((heard.rate, heard.seconds))
        assert ("more coarsely" in player.caption) == (seconds > 2.0) and len(player.data) <= 50_000
    rates = [rate for rate, _ in sizes]
    assert rates[0] == 48_000 and rates == sorted(rates, reverse=True) and rates[-1] < rates[0]
    assert {*rates} <= {highest for _, highest, _ in OGG_STEPS}


def test_the_limit_can_be_widened_or_narrowed_by_hand() -> None:
    sound = noise(4.0)
    whole = show_audio(sound, format="wav", max_bytes=1_000_000)
    assert carried(whole).frames == sound.frames and "first" not in whole.caption
    assert len(show_audio(sound, max_bytes=10_000).data) <= 10_000


def test_players_beside_one_another_share_the_limit() -> None:
    turns = tuple(
        EngineTurn(name, "", "", Heard(noise(20.0, 1, 16_000), (0.1,), (20.0,)), None) for name in ("a", "b", "c")
    )
    shown = Comparison("text", turns)._repr_html_()
    assert shown.count("<audio") == 3 and len(shown) <= 200_000


def test_the_player_refuses_what_it_cannot_play(tmp_path) -> None:
    with pytest.raises(AudioError, match="ogg, flac, wav"):
        show_audio(tone(100, 0.1), format="mp4")
    for limit in (0, -1, 601, float("nan")):
        with pytest.raises(AudioError, match="max_seconds"):
            show_audio(tone(100, 0.1), max_seconds=limit)
    for limit in (0, 9_999, 8_000_001, float("nan")):
        with pytest.raises(AudioError, match="max_bytes"):
            show_audio(tone(100, 0.1), max_bytes=limit)
    with pytest.raises(AudioError):
        show_audio(tmp_path / "missing.wav")


# ---------------------------------------------------------------------------------------------------------- panel


SURVEY = {
    "triton": Choice("missing", "no Triton server at <localhost>:8001"),
    "spark": Choice("ready", "a checkpoint is here"),
    "espeak": Choice("ready", "embedded"),
}


class Recorder:
    """Stands in for the verbs: a panel hands over what was chosen and shows what comes back, so recorded calls and a
    ready-made conversion are enough."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls: list[tuple] = []
        self.error = error
        self.survey = dict(SURVEY)

    def load(self, name: str) -> None:
        self.calls.append(("load", name))

    def convert(self, source: Audio, on_progress, **settings) -> SimpleNamespace:
        self.calls.append(("convert", source, settings, threading.current_thread()))
        on_progress(SimpleNamespace(fraction=0.5, message="half <way>"))
        if self.error:
            raise self.error
        f0 = np.full(round(source.seconds * 100), 200.0)
        return SimpleNamespace(
            audio=source, seconds=source.seconds, elapsed=0.1, voice="a", source_f0=f0, result_f0=f0,
            engines={"device": Choice("cpu", "no CUDA device")},
        )  # fmt: skip

    def speak(self, text: str, engine: str, on_progress, **settings) -> SimpleNamespace:
        self.calls.append(("speak", text, engine))
        source = tone(100, 0.3)
        return SimpleNamespace(source=source, conversion=self.convert(source, on_progress, **settings))

    def verbs(self) -> Verbs:
        return Verbs(self.load, self.speak, self.convert, lambda: dict(self.survey))


def panel_with(recorder: Recorder, **arguments) -> VoicePanel:
    return VoicePanel(voices=["a", "b"], voice="a", verbs=recorder.verbs(), **arguments)


class SevenUpload:
    """FileUpload of ipywidgets 7.7 as far as Python sees it: `value` is read-only and follows the counter."""

    def __init__(self) -> None:
        self.metadata: list[dict] = []
        self.data: list[bytes] = []
        self._made: dict[str, dict] = {}

    @property
    def value(self) -> dict[str, dict]:
        return self._made

    @property
    def _counter(self) -> int:
        return len(self._made)

    @_counter.setter
    def _counter(self, count: int) -> None:
        rows = zip(self.metadata, self.data, strict=True)
        self._made = {about["name"]: {"metadata": about, "content": content} for about, content in rows}


def as_uploaded(control, name: str, data: bytes) -> None:
    """Put a file into the control the way the front end of its own version does."""
    if isinstance(control.value, dict):
        control.metadata, control.data = [{"name": name, "size": len(data)}], [data]
        control._counter = 1
    else:
        row = {"name": name, "type": "audio/wav", "size": len(data), "last_modified": MODIFIED}
        control.value = ({**row, "content": memoryview(data)},)


def test_settings_read_back_what_was_set_and_fit_the_verbs() -> None:
    panel = panel_with(Recorder(), settings={"key": 9.0, "index_rate": 0.4, "protect": 0.2, "f0_method": "pm"})
    assert panel.settings() == {
        "key": 9.0, "auto_key": "off", "index_rate": 0.4, "protect": 0.2, "f0_method": "pm",
    }  # fmt: skip
    ConversionSettings(**panel.settings())
    panel.auto_key.value, panel.key.value = True, 1.0
    assert panel.settings()["auto_key"] == "voice" and panel.settings()["key"] == 1.0
    assert panel_with(Recorder(), settings={"auto_key": 180.0}).settings()["auto_key"] == 180.0
    assert "'a'" in repr(panel)


def test_speak_loads_the_chosen_voice_once_and_hands_over_the_settings() -> None:
    recorder = Recorder()
    panel = panel_with(recorder, text="Hello.", settings={"key": 5.0})
    panel.speak_button.click()
    panel.speak_button.click()
    panel.voice_choice.value = "b"
    panel.speak_button.click()
    assert [call[:2] for call in recorder.calls if call[0] in ("load", "speak")] == [
        ("load", "a"), ("speak", "Hello."), ("speak", "Hello."), ("load", "b"), ("speak", "Hello."),
    ]  # fmt: skip
    conversions = [call for call in recorder.calls if call[0] == "convert"]
    assert all(call[2] == panel.settings() and call[3] is threading.main_thread() for call in conversions)
    assert panel.conversion is not None and panel.source is not None and "cpu (no CUDA device)" in panel.status.value
    assert not panel.speak_button.disabled and panel.progress.value == 1.0


def test_the_panel_offers_the_engines_that_are_ready_and_says_what_the_others_lack() -> None:
    recorder = Recorder()
    panel = panel_with(recorder, text="Hello.", engine="spark")
    assert panel.engine == "spark" and list(dict(panel.engine_choice.options)) == ["auto", "spark", "espeak"]
    assert "no Triton server at &lt;localhost&gt;" in panel.engine_note.value and "spark" not in panel.engine_note.value
    panel.speak_button.click()
    panel.engine_choice.value = "auto"
    panel.speak_button.click()
    assert [call for call in recorder.calls if call[0] == "speak"] == [
        ("speak", "Hello.", "spark"), ("speak", "Hello.", "auto"),
    ]  # fmt: skip
    for engine, words in (("triton", "is not ready: no Triton server"), ("piper", "is unknown")):
        with pytest.raises(ConfigError, match=words):
            panel_with(recorder, engine=engine)


def test_the_panel_looks_again_for_engines_and_keeps_what_was_chosen_if_it_can() -> None:
    recorder = Recorder()
    panel = panel_with(recorder, engine="spark")
    recorder.survey["triton"] = Choice("ready", "a server answers")
    panel.again_button.click()
    assert panel.engine == "spark" and "triton" in dict(panel.engine_choice.options) and panel.engine_note.value == ""
    recorder.survey["spark"] = Choice("missing", "its checkpoint is gone")
    panel.again_button.click()
    assert panel.engine == "auto" and "its checkpoint is gone" in panel.engine_note.value


def test_convert_takes_the_uploaded_recording() -> None:
    recorder, sound = Recorder(), tone(300, 0.4)
    panel = panel_with(recorder)
    panel.convert_button.click()
    assert "no recording was chosen" in panel.status.value and panel.conversion is None
    as_uploaded(panel.upload, "me.wav", encode_audio(sound, EncodeOptions(format="wav", sample_format="float32")))
    assert [upload.name for upload in uploads(panel.upload)] == ["me.wav"]
    panel.convert_button.click()
    (call,) = [call for call in recorder.calls if call[0] == "convert"]
    assert np.array_equal(call[1].mono().samples, sound.samples) and uploads(panel.upload) == []


@pytest.mark.parametrize(
    ("error", "shown"), [(AudioError("<b>bad</b>", "Try <i>."), "&lt;b&gt;bad"), (KeyboardInterrupt(), "stopped")]
)
def test_a_refusal_or_the_stop_button_leaves_the_panel_usable(error: BaseException, shown: str) -> None:
    panel = panel_with(Recorder(error), text="x")
    panel.speak_button.click()
    assert shown in panel.status.value and not panel.speak_button.disabled and not panel.convert_button.disabled


def test_garbage_is_refused_in_words() -> None:
    panel = panel_with(Recorder())
    as_uploaded(panel.upload, "cat.wav", b"<html>not a sound</html>" * 10)
    panel.convert_button.click()
    assert "color" in panel.status.value and panel.conversion is None
    oversized = SimpleNamespace(value={"big.wav": {"content": b"\0" * (MAX_UPLOAD_BYTES + 1)}})
    with pytest.raises(AudioError, match="big.wav"):
        uploads(oversized)


def test_the_panel_refuses_settings_it_does_not_have() -> None:
    with pytest.raises(ConfigError, match="formant"):
        panel_with(Recorder(), settings={"formant": 1})
    with pytest.raises(ConfigError, match="index_rate"):
        panel_with(Recorder(), settings={"index_rate": 7})
    with pytest.raises(ConfigError, match="no usable voice 'c'"):
        VoicePanel(voices=["a"], voice="c", verbs=Recorder().verbs())


def test_both_generations_of_ipywidgets_are_understood() -> None:
    for control in (SevenUpload(), ipywidgets.FileUpload()):
        assert uploads(control) == []
        as_uploaded(control, "a.wav", b"123")
        assert [(upload.name, upload.data) for upload in uploads(control)] == [("a.wav", b"123")]
        clear_uploads(control)
        assert uploads(control) == []
    older = SimpleNamespace(class_trait_names=lambda: ["description_tooltip"])
    newer = SimpleNamespace(class_trait_names=lambda: ["tooltip", "description"])
    assert tooltip(older, "x") == {"description_tooltip": "x"} and tooltip(newer, "x") == {"tooltip": "x"}


def test_every_control_explains_itself_and_sliders_cover_a_value_outside_their_usual_span() -> None:
    panel = panel_with(Recorder())
    controls = (panel.voice_choice, panel.key, panel.index_rate, panel.protect, panel.f0_method, panel.auto_key)
    for control in (*controls, panel.engine_choice, panel.again_button):
        words = getattr(control, "tooltip", None) or getattr(control, "description_tooltip", None)
        assert words and len(words) > 10
    assert slider("key", "key", 40.0, 0.5, (-24.0, 24.0)).max == 40.0


def test_a_conversion_is_described_in_words() -> None:
    conversion = Recorder().convert(tone(200, 0.5), lambda step: None)
    words = repr(show_conversion(tone(200, 0.5), conversion))
    assert "0.50 s" in words and "median f0 of the result 200 Hz" in words
