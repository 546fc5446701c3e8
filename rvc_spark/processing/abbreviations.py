"""Words whose full stop seldom ends a sentence, by language, and words that seldom follow one inside a sentence.

Data only; `utils` knows the rules. All forms are lower case without their last full stop.
"""

from __future__ import annotations

from dataclasses import dataclass

NUMBERED = frozenset(
    "no nos nr nrn num núm n nº p pp pg pag pág págs s ss f ff vol vols ch chap cap caps kap sec sect sek fig figs abb "
    "taf tab tbl eq eqn art arts abs par para § z ziff ver v jan feb mar apr jun jul aug sep sept oct okt nov dec dez "
    "janv févr avr juil déc ene abr ago set dic gen giu lug ott mag ca c bd tel tél rn".split()
)
"""Ends no sentence before a number: No. 5, S. 12, Abb. 3, Jan. 5."""

STARTERS = frozenset(
    "The A An He She It We They You I This That These Those There Here Then But And So Or In On At As If When While "
    "After Before However Now My His Her Our Their Its What Why How Who Where Yes No Not Today Meanwhile Although "
    "Der Die Das Ein Eine Er Sie Es Wir Ihr Ich Dann Danach Aber Und Doch Im Am Wenn Als Dies Diese Dieser Auch Nun "
    "Le La Les Un Une Des Il Elle Ils Elles Nous Vous Je On Ce Cette Ces Mais Et Puis Alors Dans Pour Quand "
    "El Los Las Una Unos Unas Él Ella Ellos Nosotros Yo Esto Esta Este Pero Y Luego Entonces En Cuando Para "
    "Lo Gli Uno Lui Lei Loro Noi Voi Io Questo Questa Ma E Poi Allora Nel Quando Per Però "
    "O Os As Um Uma Ele Ela Eles Nós Eu Isto Mas Depois Então Em".split()
)
"""Capitalised words that open sentences and are hardly ever part of a name."""

MONTHS = frozenset(
    "januar jänner februar märz april mai juni juli august september oktober november dezember".split()
)
"""Follow an ordinal: am 3. Oktober."""

WEEKDAYS = frozenset("Monday Tuesday Wednesday Thursday Friday Saturday Sunday Mon Tue Wed Thu Fri Sat Sun".split())
"""Follow a time of day: 7 a.m. Monday."""

ORDINAL_LANGUAGES = frozenset("de da no nb nn fi et lv cs sk sl hr bs sr hu pl is tr eu lb".split())
"""Languages that write ordinals with a full stop: der 2. Weltkrieg."""


@dataclass(frozen=True)
class Abbreviations:
    """`never`: no sentence ends here (Dr., e.g.). `maybe`: one does before a typical opening word (Inc., U.S.).

    `likely`: one does unless a lower-case word or a number follows (etc., p.m.).
    """

    never: frozenset[str]
    maybe: frozenset[str]
    likely: frozenset[str]


def _table(never: str, maybe: str = "", likely: str = "") -> Abbreviations:
    return Abbreviations(frozenset(never.split()), frozenset(maybe.split()), frozenset(likely.split()))


_COMMON = _table("dr prof mr mrs ms mme mlle mgr st. vs cf e.g i.e viz", "st", "etc")
_BY_LANGUAGE = {
    "en": _table(
        "eg ie messrs mx hon rev fr gen col capt lt sgt maj cmdr adm gov sen rep pres supt insp mt ft approx incl excl "
        "esp resp al",
        "inc ltd co corp bros jr sr esq dept univ est ave blvd rd sq u.s u.k u.n e.u u.s.a d.c l.a n.y ph.d m.d b.a "
        "m.a b.c a.d assn",
        "a.m p.m",
    ),
    "de": _table(
        "hr fr frl fa herrn dipl ing phil med jur rer nat hon bzw ggf evtl inkl exkl zzgl vgl sog geb gest gegr verh "
        "allg bes insb einschl mind max min mio mrd tsd z.b d.h u.a i.d.r o.ä s.o s.u v.a z.t i.a u.u m.e u.ä",
        "str gmbh n.chr v.chr",
        "usw usf u.s.w",
    ),
    "fr": _table("m mm mmes mlles me pr vve ste env éd p.ex c.-à-d c.à.d resp min max", "cie av bd s.a", "etc"),
    "es": _table(
        "sr sra srta sres sras dra dña d lic ing arq gral cnel cap prof profa ud uds vd vds aprox máx mín p.ej ej",
        "cía s.a ee.uu a.c d.c av avda",
    ),
    "it": _table(
        "sig sigg sig.ra sig.na dott dott.ssa prof.ssa avv ing arch geom rag on sen gen col cap mons es p.es ad.es "
        "cfr ca circa max min",
        "s.p.a s.r.l spa srl f.lli a.c d.c",
        "ecc",
    ),
    "pt": _table("sr sra srta dra exmo exma eng arq prof profa v.ex p.ex ex aprox", "ltda cia s.a av", "etc"),
    "nl": _table("dhr mevr mw ir ing drs bijv bv d.w.z o.a t.a.v ca max min", "b.v n.v", "enz"),
}
_CLASHING = frozenset(
    "on es fr fa d al ing m me pr cap ca ex min max ft ad ej s.o bes mind sen gen col cie av nat".split()
)
"""Abbreviations that are ordinary words elsewhere; used only where their language was named."""


def abbreviations(language: str | None) -> Abbreviations:
    """Those of one language (`de`, `de-AT`), or of all when the language is not known, less what would clash."""
    own = _BY_LANGUAGE.get((language or "").lower().replace("_", "-").split("-")[0])
    tables = [_COMMON, own] if own else [_COMMON, *_BY_LANGUAGE.values()]
    clashing = frozenset() if own else _CLASHING
    return Abbreviations(
        frozenset().union(*(table.never for table in tables)) - clashing,
        frozenset().union(*(table.maybe for table in tables)) - clashing,
        frozenset().union(*(table.likely for table in tables)) - clashing,
    )
