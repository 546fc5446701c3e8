"""What became of a stream, in figures."""

from __future__ import annotations

from dataclasses import dataclass

from rvc_spark.streaming.sinks import Feedback


@dataclass(frozen=True)
class StreamStats:
    """A stream at one moment.

    Attributes:
        state: "starting", "playing", "paused", "ended", "stopped", "failed", or why it was stopped ("page closed").
        made: seconds of sound the producer made.
        sent, packets: seconds and packets that went to the player.
        first_sound: seconds from the start to the first sound; None before it.
        real_time_factor: seconds the producer worked per second of sound; below 1 is faster than playing. None before
            the first sound.
        reanchors: how often the producer was so late that the player ran dry.
        late: the most seconds a packet went out after it was due.
        gaps: sentences that are missing.
        player: what the player in the page last said.
    """

    state: str
    made: float = 0.0
    sent: float = 0.0
    packets: int = 0
    first_sound: float | None = None
    real_time_factor: float | None = None
    reanchors: int = 0
    late: float = 0.0
    gaps: int = 0
    player: Feedback = Feedback()

    def __str__(self) -> str:
        words = [f"{self.state}: {self.made:.1f} s made"]
        if self.first_sound is not None:
            words += [f"first sound after {self.first_sound:.2f} s", f"real-time factor {self.real_time_factor:.2f}"]
        words += [f"{self.sent:.1f} s sent in {self.packets} packets"] if self.packets else []
        words += [_times(self.reanchors, "the producer was late", "the producer was late {} times")]
        words += [_times(self.gaps, "1 sentence is missing", "{} sentences are missing")]
        if self.player.mode:
            words += [f"{self.player.underruns} underruns, {self.player.lost} packets lost ({self.player.mode})"]
        return ", ".join(word for word in words if word)


def _times(count: int, once: str, often: str) -> str:
    return "" if not count else once if count == 1 else often.format(count)
