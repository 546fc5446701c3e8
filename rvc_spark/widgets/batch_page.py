"""A batch as one page: totals, what failed, and every item with its picture, its sound and its figures.

The page asks for nothing from anywhere: no scripts, no fonts, no addresses but those of the sounds beside it, and a
content security policy of its own that says so. All that comes from a list is text, never markup.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from rvc_spark.jobs.batch import BatchRow
from rvc_spark.jobs.batch_report import BatchSummary, engine_of, figure, remarks_of

MAX_ITEMS = 1_000  # with pictures and players; a browser is slow beyond, and the tables hold everything
MAX_FAILED = 500
EMBEDDED_BYTES = 3 << 20  # of pictures inside the page; more are linked
TITLE_LETTERS = 300
_POLICY = "default-src 'none'; img-src 'self' data: file:; media-src 'self' file:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: light-dark(#5a5a5a, #b0b0b0);
  --bad: light-dark(#a8321f, #ff9d8a); --source: light-dark(#b24e00, #e69f00); --result: light-dark(#00639b, #56b4e9); }
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p { margin: .3rem 0 } .soft, figcaption { color: var(--soft); font-size: .9rem }
.totals { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; list-style: none }
.totals li { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; min-width: 6.5rem }
.totals b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums } .bad b, .bad { color: var(--bad) }
.source { color: var(--source); font-weight: 600 } .result { color: var(--result); font-weight: 600 }
article { display: grid; grid-template-columns: minmax(0, 22rem) minmax(0, 1fr); gap: .3rem 1.4rem;
  border-top: 1px solid var(--line); padding: .9rem 0 }
article.failed { display: block; border-left: 3px solid var(--bad); padding-left: .9rem; margin-top: .6rem }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere } h3 .soft { font-weight: 400 }
img { width: 100%; height: auto; border: 1px solid var(--line); border-radius: .2rem; background: #fff; display: block }
audio { width: 100%; max-width: 26rem; height: 2.4rem; margin: .4rem 0 } q { overflow-wrap: anywhere }
ul.figures { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: 0; padding: 0; list-style: none;
  font-size: .9rem; font-variant-numeric: tabular-nums }
@media (max-width: 44rem) { article { grid-template-columns: minmax(0, 1fr) } }
"""


def plain(text: str, letters: int = TITLE_LETTERS) -> str:
    """Text for a page: printable, on one line, of bounded length, escaped."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * letters])
    shown = " ".join(shown.split())
    return html.escape(shown if len(shown) <= letters else shown[: letters - 1] + "…")


def picture_tag(png: bytes, words: str, style: str = "") -> str:
    """A picture inside the page."""
    told = f' style="{style}"' if style else ""
    return f'<img alt="{words}"{told} src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


def report_page(title: str, summary: BatchSummary, pictures: Mapping[str, bytes], notes: tuple[str, ...] = ()) -> str:
    """The page, for a file beside `sounds/` and `pictures/`.

    Args:
        pictures: item's id -> PNG; they are put into the page, or linked where they are too many.
        notes: said at the top.
    """
    shown = summary.done[:MAX_ITEMS]
    embedded = sum(len(pictures.get(row.entry.id, b"")) for row in shown) <= EMBEDDED_BYTES
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{plain(title, 100)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{plain(title)}</h1>",
        *(f'<p class="soft">{plain(note)}</p>' for note in notes),
        _totals(summary),
        _failures(summary.failed),
    ]
    if shown:
        parts.append(
            '<h2>Sounds</h2><p class="soft">Pictures: <span class="source">source</span> above '
            '<span class="result">result</span>, 0 to 8 kHz on the mel scale; the coloured lines are the f0, on a '
            "scale of their own: 50 Hz at the bottom, 800 Hz at the top.</p>"
        )
        parts += [_item(row, pictures.get(row.entry.id), embedded) for row in shown]
    if len(summary.done) > len(shown):
        parts.append(f"<p>{len(summary.done) - len(shown):,} more are in report.csv and in the folder sounds.</p>")
    return "\n".join([*parts, _footer(), "</body></html>"])


def _totals(summary: BatchSummary) -> str:
    told = summary.totals()
    pitch = told["median_pitch_error_cents"]
    tiles = [
        ("items", f"{told['items']:,}", ""),
        ("made now", f"{told['made']:,}", ""),
        ("kept from before", f"{told['kept']:,}", ""),
        ("failed", f"{told['failed']:,}", "bad" if told["failed"] else ""),
        ("of sound", _duration(told["seconds"]), ""),
        ("real-time factor", _number(told["real_time_factor"], 2), ""),
        ("LUFS, median", _number(told["median_lufs"], 1), ""),
        ("cents off pitch, median", _number(pitch, 0), ""),
    ]
    spoke = ", ".join(f"{plain(name)} spoke {count:,}" for name, count in told["engines"].items())
    items = "".join(f'<li class="{kind}"><b>{value}</b>{name}</li>' for name, value, kind in tiles)
    return f'<ul class="totals">{items}</ul>' + (f'<p class="soft">{spoke}.</p>' if spoke else "")


def _failures(rows: tuple[BatchRow, ...]) -> str:
    if not rows:
        return ""
    parts = ['<h2 class="bad">Failed</h2>']
    for row in rows[:MAX_FAILED]:
        problem, step = (row.error.problem, row.error.next_step) if row.error else ("it failed", "")
        quoted = f"<p><q>{plain(row.entry.title)}</q></p>" if row.entry.title else ""
        parts.append(
            f'<article class="failed"><h3>{plain(row.entry.id)} <span class="soft">{plain(row.entry.place)}</span></h3>'
            f'{quoted}<p class="bad">{plain(problem)}.</p><p>{plain(step)}</p></article>'
        )
    if len(rows) > MAX_FAILED:
        parts.append(f"<p>{len(rows) - MAX_FAILED:,} more are in report.csv.</p>")
    return "".join(parts)


def _item(row: BatchRow, png: bytes | None, embedded: bool) -> str:
    assert row.file is not None
    words = f"Spectrograms of source and result of {plain(row.entry.id, 80)}"
    if png is None:
        picture = "<span></span>"
    elif embedded:
        picture = picture_tag(png, words)
    else:
        picture = f'<img loading="lazy" alt="{words}" src="{quote(f"pictures/{row.entry.name}.png")}">'
    address = quote(row.file.relative_to(row.folder).as_posix())
    remarks = "".join(f'<p class="bad">{plain(remark)}</p>' for remark in remarks_of(row))
    return (
        f'<article>{picture}<div><h3>{plain(row.entry.id)} <span class="soft">{plain(row.entry.place)}</span></h3>'
        f"<p><q>{plain(row.entry.title)}</q></p>"
        f'<audio controls preload="none" src="{address}" aria-label="{plain(row.entry.id, 80)}"></audio>'
        f'<ul class="figures">{"".join(f"<li>{told}</li>" for told in item_figures(row))}'
        f'<li><a href="{address}">{html.escape(row.file.name)}</a></li></ul>{remarks}</div></article>'
    )


def item_figures(row: BatchRow) -> list[str]:
    """The figures of an item in a few words each, ready for a page."""

    def told(name: str, digits: int) -> str:
        return _number(figure(row.metrics, name), digits)

    lines = [f"{told('seconds', 2)} s", f"{told('lufs', 1)} LUFS", f"true peak {told('true_peak_dbtp', 1)} dB"]
    if figure(row.metrics, "source_f0_hz") is not None:
        lines.append(f"f0 {told('source_f0_hz', 0)} → {told('result_f0_hz', 0)} Hz")
        key = figure(row.metrics, "key") or 0.0
        lines.append(f"key {key:+g}".replace("-", "−"))
        lines.append(f"{told('pitch_error_cents', 0)} cents off")
        lines.append(f"voiced {100 * (figure(row.metrics, 'voiced_share') or 0.0):.0f} %")
    lines.append(f"real-time factor {told('real_time_factor', 2)}")
    voice = plain(str(row.record.get("voice", "")), 60)
    spoke = plain(engine_of(row), 20)
    lines.append(f"{spoke} → {voice}" if spoke else voice)
    return lines


def _number(value: Any, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def _footer() -> str:
    return (
        '<h2>What the figures mean</h2><p class="soft">Made by RVC-Spark. f0: median pitch of source and result, '
        "measured in both. "
        "Cents off: how far the melody of the result lies from the one asked for; 100 are a semitone. "
        "Real-time factor: seconds of work per second of sound. Loudness after ITU-R BS.1770-4. "
        'All figures and settings: <a href="report.csv">report.csv</a>, <a href="report.json">report.json</a>. '
        "Run the same batch again and only what is new or changed is made.</p>"
    )
