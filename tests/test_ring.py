"""The ring that plays packets on the browser's sound thread, run under node: what leaves it, sample by sample."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node") or shutil.which("nodejs")
RING = Path(__file__).parent.parent / "rvc_spark" / "streaming" / "page" / "ring.js"
FADE = 220  # frames of 5 ms at 44.1 kHz, within one
NO_CLICK = 2.0  # +6 dB over the second difference of the sine that is played

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed; the ring is JavaScript")


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    """What the script measured, case by case."""
    command = [NODE, "--expose-gc", str(Path(__file__).with_name("ring_node.mjs")), str(RING)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_samples_leave_as_they_came(cases: dict[str, Any]) -> None:
    exact = cases["exact"]
    assert exact["sent"] > 200_000
    assert (exact["wrong"], exact["played"], exact["state"]) == (0, exact["sent"], "finished")
    assert (exact["underruns"], exact["overrun"], exact["gaps"], exact["lost"], exact["silent"]) == (0, 0, 0, 0, 0)


def test_running_dry_fades_out_and_in_again(cases: dict[str, Any]) -> None:
    dry = cases["dry"]
    assert dry["dry"]["state"] == "waiting" and dry["dry"]["underruns"] == 1 and dry["dry"]["silent"] > 3000
    assert dry["tailMoves"] and dry["silentAfterTail"] and dry["below"], "silent until `prebuffer` is there again"
    assert dry["roughness"] < NO_CLICK
    assert (dry["underruns"], dry["played"], dry["state"]) == (1, 6108, "finished")


def test_a_pause_loses_nothing(cases: dict[str, Any]) -> None:
    pause = cases["pause"]
    assert pause["paused"]["state"] == "paused" and pause["paused"]["played"] == 6400
    assert 0 < pause["silentIn"] <= FADE + 1
    assert pause["same"] and pause["played"] == 30_000 and pause["underruns"] == 0
    assert pause["roughness"] < NO_CLICK


def test_a_pause_before_the_first_sound_leaves_its_samples_alone(cases: dict[str, Any]) -> None:
    assert cases["pausedFirst"] == {"silent": True, "exact": True}


def test_lost_packets_are_counted_and_leave_their_length_in_silence(cases: dict[str, Any]) -> None:
    lost = cases["lost"]
    assert (lost["recv"], lost["gaps"], lost["lost"], lost["repeated"]) == (3, 2, 4, 1), "2 in the middle, 2 at the end"
    assert lost["silence"] and lost["played"] == 12_000
    assert lost["roughness"] < NO_CLICK


def test_what_does_not_fit_is_counted(cases: dict[str, Any]) -> None:
    assert (cases["over"]["overrun"], cases["over"]["played"], cases["over"]["exact"]) == (500, 1000, True)


def test_stop_is_silent_within_its_tail_and_ends_the_processor(cases: dict[str, Any]) -> None:
    stop = cases["stop"]
    assert 0 < stop["silentIn"] <= FADE + 1 and stop["roughness"] < NO_CLICK
    assert (stop["state"], stop["played"], stop["buffered"]) == ("stopped", 2560, 0)
    assert stop["alive"] is True and stop["closed"] is False


def test_delay_that_nobody_needs_is_skipped_in_silences_only(cases: dict[str, Any]) -> None:
    trim = cases["trim"]
    assert trim["trims"] > 1 and trim["trimmed"] == 35_280 and trim["depth"] == 8820, "down to the lead"
    assert trim["same"] and trim["underruns"] == 0 and trim["roughness"] < NO_CLICK
    assert trim["played"] + trim["trimmed"] == trim["position"]


def test_delay_that_was_wanted_is_left(cases: dict[str, Any]) -> None:
    assert cases["notTrimmed"] == {"capture": 0, "withinMargin": 0, "afterPause": 0}


def test_playing_makes_nothing_that_must_be_collected(cases: dict[str, Any]) -> None:
    assert cases["memory"]["played"] == 1_280_000
    assert abs(cases["memory"]["bytesPerCall"]) < 300, "loose numbers; the samples of one quantum would be 1,024 bytes"
