"""A cover in a cell: the table of its stages, the picture of its sounds, two sounds at one loudness."""

from __future__ import annotations

import re

import numpy as np
import pytest
from quick_cover import QuickVoice, band, made, maker_in, sung

from rvc_spark.audio import Audio
from rvc_spark.covers.cover_settings import CoverSettings
from rvc_spark.covers.song_cover import CoverInput
from rvc_spark.errors import ConfigError
from rvc_spark.widgets import compare_sounds, show_cover, show_stages
from rvc_spark.widgets.cover_view import cover_figure


def tone(level: float, seconds: float = 1.0) -> Audio:
    return Audio((level * np.sin(np.arange(round(44_100 * seconds)) / 20)).astype(np.float32), 44_100)


def test_a_cover_shows_its_stages_and_its_sounds(tmp_path) -> None:
    maker, given = maker_in(tmp_path), CoverInput(vocals=sung(), accompaniment=band())
    rows = maker.explain(given, CoverSettings().changed(key=0.0), None, QuickVoice())
    assert "to be made" in show_stages(rows)._repr_html_() and "never made" in repr(show_stages(rows, "before"))
    cover = made(maker, given, QuickVoice(), key=0.0)
    table = repr(show_stages(cover.stages))
    assert "lead voice" in table and "✓ made" in table and "as recorded" in table
    picture = show_cover(cover)
    assert picture.png.startswith(b"\x89PNG")
    told = "Waveform and mel spectrogram of vocals (1.5 s), converted (1.5 s), gate, effects (1.5 s), band (1.5 s), mix"
    assert repr(picture).startswith(told), "lead is not drawn: nothing was split, so it is the vocals"


def test_two_sounds_are_compared_at_one_loudness() -> None:
    player = compare_sounds(A_quiet=tone(0.05), B_loud=tone(0.5))
    page = player._repr_html_()
    assert page.count("<audio") == 2 and page.count("onplay=") == 2 and "A quiet" in page
    gains = [float(gain) for gain in re.findall(r"([+-][\d.]+) dB", player.note)]
    assert gains[0] - gains[1] == pytest.approx(20, abs=0.2) and "LUFS" in player.note
    assert len(page) < 200_000 and repr(player).count("44100 Hz") == 2


def test_what_cannot_be_shown_is_named() -> None:
    with pytest.raises(ConfigError, match="1 sounds cannot be compared"):
        compare_sounds(one=tone(0.1))
    with pytest.raises(ConfigError, match="nothing|no sound"):
        cover_figure({})
    with pytest.raises(ConfigError, match="theme"):
        cover_figure({"a": tone(0.1)}, theme="pink")


def test_a_figure_of_one_silent_sound_is_drawn() -> None:
    figure = cover_figure({"silence $x$": tone(0.0)}, title="a $title$")
    assert len(figure.axes) == 2
