"""Sentence splitting: real-world text, nothing lost, limits kept, hostile text refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rvc_spark.errors import TextError
from rvc_spark.processing.utils import (
    MAX_SENTENCE_CHARS,
    MAX_TEXT_CHARS,
    MIN_SENTENCE_CHARS,
    normalise_text,
    split_text_and_validate,
)

# The cases are written as one string; "|" stands between the sentences expected.
SENTENCES = {
    "titles": "Dr. Smith met Mrs. Jones and Prof. Lee.|They talked.",
    "initials": "J. R. R. Tolkien knew C.S. Lewis.|J.K. Rowling did not.",
    "latin": "Use it for lists, e.g. this one, i.e. that.|It helps, etc. and so on.|Smith et al. (2020) agree.",
    "countries": "The U.S. Army is in the U.S.|He lives in the U.K. now.",
    "companies": "Apple Inc. sells phones.|He left Apple Inc.|The firm went on.",
    "numbered": "See No. 5, fig. 3 and p. 12 of vol. II now.|He said no.|Then he left.",
    "decimals": "It cost $3.50.|Pi is 3.14159 or so.|That is 1,000,000.5 units.",
    "versions": "Python 3.11.2 is out.|Get v1.2.|It works.",
    "times": "At 5 p.m. on Monday we met at 12:30.|At 3 p.m. EST too.|We left at 5 p.m.|Then we slept.",
    "dates": "On Jan. 5 it snowed.|In the 1990s.|Then it stopped.",
    "saints": "St. Petersburg is far.|I live on Main St.|The house is red.",
    "quotes": '"Really?" she asked.|"Yes!"|He left.|“Stop.”|‘Go.’|And so on.',
    "brackets": "He left (at last!).|(See page 5.)|[A note.]|Then it ended.",
    "reported": '"Stop!", he said.|He said "Go." and went.',
    "ellipsis": "Well... maybe not.|Wait…|What?|And then... nothing.",
    "stacked": "What?!|No!!!|Really??|Yes.",
    "footnotes": "It is known.[1]|It is proven.[12][13]|So it is.",
    "single letters": "So do I.|He got an A.|She got vitamin C.|The end.",
    "lower case": "hello there.|how are you.|fine",
    "addresses": "Visit https://example.com/a.b?c=d!e.|Mail me@ex.co.uk.|See www.foo.org, ok?|Good.",
    "emoji": "Great! 🎉🎉|Thanks 👍🏽.|See you 👋",
    "file names": "Open setup.py now.|Then run a.out.|Done.",
    "species": "E. coli is small.|Mt. Everest is not.",
    "german": "Das ist z. B. ein Test, d.h. gut.|Herr Dr. med. Weber kam usw.|Dann ging er.|„Ja.“|Gut.",
    "german numbers": "Am 3. Mai war der 2. Weltkrieg aus.|Ludwig XIV. war alt.|Nach § 5 Abs. 3 S. 1 10.000,50 €.",
    "french": "M. Dupont est là.|Quoi ?|Non !|« Bonjour ! » dit-il.|« Oui. »|Il part, p. ex. demain.",
    "spanish": "El Sr. García llegó.|¿Qué tal?|¡Bien!|La Dra. López, p. ej. hoy.|Fin.",
    "italian": "Il sig. Rossi, la dott.ssa Bianchi ecc.|Poi andò via.|«Sì.»|Fine.",
    "chinese": "你好。|今天天气很好！|是吗？！|价格是3.5元。|“好。”|然后走了。",
    "japanese": "「はい。」と言った。|そうです（本当？）。|終わり。",
    "mixed": "Hello!|你好。|OK.|好的",
    "arabic": "كيف حالك؟|أنا بخير.|شكرا۔",
    "hindi": "यह एक परीक्षण है।|दूसरा वाक्य॥|अंत",
    "greek": "Τι κάνεις;|Καλά.",
}
LANGUAGES = {
    "german": "de", "german numbers": "de-AT", "french": "fr", "spanish": "es_MX", "italian": "it", "greek": "el",
}  # fmt: skip
NO_SPACE_BETWEEN = {"chinese", "japanese", "mixed"}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_end_where_a_reader_ends_them(name: str) -> None:
    expected = SENTENCES[name].split("|")
    text = ("" if name in NO_SPACE_BETWEEN else " ").join(expected)
    assert split_text_and_validate(text, language=LANGUAGES.get(name)) == expected


@pytest.mark.parametrize("name", [name for name in SENTENCES if name not in ("german numbers", "greek", "french")])
def test_most_of_it_holds_without_naming_the_language(name: str) -> None:
    expected = SENTENCES[name].split("|")
    text = ("" if name in NO_SPACE_BETWEEN else " ").join(expected)
    assert split_text_and_validate(text) == expected


def test_lines_lists_and_paragraphs() -> None:
    text = """A heading

    This paragraph was wrapped by its width because the author
    of it used an old editor.  It has
    two sentences.
    - first point
    - second point, which
    goes on here
    * third
    1. Numbered item. With more.
    2) Another
    ---
    Roses are red
    Violets are blue"""
    assert split_text_and_validate(text) == [
        "A heading",
        "This paragraph was wrapped by its width because the author of it used an old editor.",
        "It has two sentences.",
        "- first point",
        "- second point, which goes on here",
        "* third",
        "1. Numbered item.",
        "With more.",
        "2) Another ---",
        "Roses are red",
        "Violets are blue",
    ]


def test_line_ends_of_every_system() -> None:
    for end in ("\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"):
        assert split_text_and_validate(f"One thing{end}Two things") == ["One thing", "Two things"]


def test_wrapped_chinese_is_joined_without_a_space() -> None:
    assert split_text_and_validate("这是一行很长很长很长很长很长很长很长很长的\n中文文字。") == [
        "这是一行很长很长很长很长很长很长很长很长的中文文字。"
    ]


def test_normalising_composes_and_removes_only_what_is_invisible() -> None:
    assert normalise_text("\ufeff  Cafe\u0301\u00a0 so\u00adft\tx\u200by \n\n\n\n z ") == "Café soft xy\n\nz"


LONG = (
    "When the night falls over the harbour and the last ships come home, the lights go on one after another; nobody "
    "speaks, because everybody knows that the sea, which is never quiet, listens, and (as always) the bell rings"
)


def test_long_sentences_are_cut_after_clauses() -> None:
    pieces = split_text_and_validate(LONG, max_chars=110)
    assert pieces[0].endswith("another;") and " ".join(pieces) == LONG
    assert split_text_and_validate(LONG, max_chars=60)[2].endswith("sea,")


def test_long_clauses_are_cut_between_words_and_words_only_alone() -> None:
    pieces = split_text_and_validate("word " * 100, max_chars=22)
    assert pieces == ["word word word word"] * 25
    assert split_text_and_validate("x" * 50, max_chars=20) == ["x" * 20, "x" * 20, "x" * 10]
    numbers = "数字1,000,000和小数3.14159都不会被切断的这是一个长句子"
    assert split_text_and_validate(numbers, max_chars=20)[1].startswith("3.14159都")


def test_addresses_are_not_cut() -> None:
    url = "https://example.com/very/long/path?x=1,2;y"
    for text in (f"看看这个{url}然后告诉我你的想法好吗谢谢", f"look at this {url} and tell me what you think of it"):
        assert any(url in piece for piece in split_text_and_validate(text, max_chars=len(url) + 3))
    mail = "somebody.important+tag@mail.example.co.uk"
    assert any(mail in piece for piece in split_text_and_validate(f"给{mail}写信吧" * 3, max_chars=45))


def test_accents_and_joined_emoji_stay_whole() -> None:
    family = "👨\u200d👩\u200d👧"
    for unit in (family, "ก็", "🇩🇪", "👍🏽", "नि"):
        pieces = split_text_and_validate("a" + unit * 60, max_chars=20)
        assert all(len(piece) <= 20 for piece in pieces)
        assert sum(piece.count(unit) for piece in pieces) == 60


TEXTS = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="aB3 .!?…,;:'\"()[]»«\n-。！、字ก้é٣؟।🎉\u200d", max_size=300),
    st.lists(st.sampled_from(["Dr.", "e.g.", "U.S.", "3.", "The", "word,", "(x)", "\n\n", "- a", "?!"])).map(" ".join),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.integers(MIN_SENTENCE_CHARS, 120), st.sampled_from([None, "en", "de", "el", "zz-ZZ", ""]))
@example("a" + "\u0301" * 60, 20, None)
@example("a." + ")" * 50 + " b", 20, None)
def test_nothing_is_lost_and_every_piece_fits(text: str, max_chars: int, language: str | None) -> None:
    try:
        pieces = split_text_and_validate(text, max_chars=max_chars, language=language)
    except TextError:
        return
    normal = normalise_text(text)
    assert re.sub(r"\s", "", "".join(pieces)) == re.sub(r"\s", "", normal)
    assert all(0 < len(piece) <= max_chars and piece == piece.strip() and "\n" not in piece for piece in pieces)
    assert normalise_text(normal) == normal
    assert split_text_and_validate(text, max_chars=max_chars, language=language) == pieces


@given(st.lists(st.sampled_from(["The cat sat down.", "Is it so?", "He said 3.5 is more!"]), min_size=1, max_size=30))
def test_plain_sentences_come_back_one_by_one(sentences: list[str]) -> None:
    assert split_text_and_validate(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "text, match",
    [
        ("", "is empty"),
        (" \n\t\u3000\ufeff\u200b ", "is empty"),
        ("?!... -- ()", "no letter and no digit"),
        ("🎉🎉 👍", "no letter and no digit"),
        ("a" * (MAX_TEXT_CHARS + 1), "200,001 characters, up to 200,000"),
        ("x" * 1_000_000, "1,000,000 characters"),
        ("hello\x00world", r"U\+0000, at character 6"),
        ("\x1b[31mred", r"U\+001B, at character 1"),
        ("a\x7f", r"U\+007F"),
        ("a\x9b", r"U\+009B"),
        ("bad \ud800 half", r"surrogate, U\+D800, at character 5"),
        ("noncharacter \uffff", r"U\+FFFF"),
        (b"bytes", "type bytes"),
        (None, "type NoneType"),
    ],
)
def test_refused_texts_name_the_reason(text: object, match: str) -> None:
    with pytest.raises(TextError, match=match) as caught:
        split_text_and_validate(text)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("max_chars", [0, -5, MIN_SENTENCE_CHARS - 1, MAX_SENTENCE_CHARS + 1, 10**12])
def test_max_chars_out_of_range(max_chars: int) -> None:
    with pytest.raises(TextError, match=f"max_chars is {max_chars}, it must lie between 20 and 5000"):
        split_text_and_validate("Hello.", max_chars=max_chars)


@pytest.mark.timeout(20)  # each takes well under a second; a quadratic rule would take minutes
@pytest.mark.parametrize(
    "unit",
    ["a", ".", "a. ", "a@", "\u0301\u0323", "(.", '."', "U.S.", "« ", ". »", "、", "- ", "1.", "\n", "a\n", "z. B. "]
    + ["好", ".🎉 ", "[1].", " 🎉", "🇩🇪", "\u200d"],
)
def test_repetition_at_full_length_is_no_trap(unit: str) -> None:
    text = (unit * MAX_TEXT_CHARS)[: MAX_TEXT_CHARS - 1] + "a"
    pieces = split_text_and_validate(text, max_chars=200)
    assert max(map(len, pieces)) <= 200
